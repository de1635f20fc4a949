"""Repair a fine-tuned language model after the fact, from its base and fine-tuned checkpoints alone."""
