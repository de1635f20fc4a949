"""Calibration: compute from a model, with or without texts, the files that the methods null-space, fisher and graft read."""
