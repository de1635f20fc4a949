"""What the recorded studies in docs/results say, and whether a study can be repeated."""
