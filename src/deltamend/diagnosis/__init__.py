"""What an update looks like, matrix by matrix, and whether a spectral threshold means on it what the paper says."""
