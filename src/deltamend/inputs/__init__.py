"""Open whatever a user names as a model, show its tensors in one layout, and pair the tensors of two models."""
