"""Random-matrix theory and fast spectral filters. This room knows matrices, not checkpoints or files."""
