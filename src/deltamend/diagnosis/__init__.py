"""Diagnose an update, matrix by matrix: does it look like a signal in noise, as a spectral threshold assumes?"""
