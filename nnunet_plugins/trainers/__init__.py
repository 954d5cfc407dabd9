"""nnU-Net trainers, one class a file, the file named like the class."""
