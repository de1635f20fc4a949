"""Calibration: what a few methods want to know from data, computed with gradients and stored beside the checkpoints."""
