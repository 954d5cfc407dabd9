"""nnU-Net experiment planners, one class a file, the file named like the class."""
