"""Checkpoints that a distributed training run wrote, each process its own part: put together as they are read."""
