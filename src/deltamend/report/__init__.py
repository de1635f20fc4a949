"""What was found, as pages: HTML that works from a file, without a script or a network."""
