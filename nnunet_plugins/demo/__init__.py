"""`mambamed demo`: one nnU-Net experiment from raw images to a report."""
