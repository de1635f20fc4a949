"""Load a language model with transformers, and fine-tune one."""
