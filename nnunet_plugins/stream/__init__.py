"""Networks that answer frame by frame, on videos and cameras, and their step as a file."""
