"""Time and memory: one matrix, whole commands, evaluations, scores."""
