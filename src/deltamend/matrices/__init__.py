"""Stored matrices as the mathematics reads them: views, buffers, the delta of two, how far two checkpoints are apart."""
