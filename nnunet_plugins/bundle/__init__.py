"""What MONAI bundles of nnU-Net plans are made of; their folders hold configuration only.

A bundle does what nnU-Net would do with the same plans because nnU-Net's own functions do it: its
preprocessor, its sliding window and its way back to the image's grid, behind MONAI's interfaces.
"""
