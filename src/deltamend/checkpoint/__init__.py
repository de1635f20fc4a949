"""Checkpoints as files: open, lay out, write, publish and verify them. Nothing here knows of methods."""
