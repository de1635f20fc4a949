"""Checkpoints as files: open, pair, write, verify. This room knows files and tensors, not methods."""
