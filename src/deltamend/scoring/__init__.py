"""Did the repair help: the partition-conditional metric, and what its figures are worth."""
