"""Repair methods, one file for each. A method sees the delta of one matrix and its context; it knows nothing of checkpoints."""
