"""Weights that are stored quantised, one module a format; each is dequantised block by block as it is read."""
