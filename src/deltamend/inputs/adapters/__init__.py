"""PEFT adapters: what their files say, which tensors of a model they belong to, and the model with one merged into it."""
