"""Whatever a person calls a model, shown as tensors in one layout, and which tensors of two models belong together."""
