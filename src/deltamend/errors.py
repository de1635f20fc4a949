"""The errors a person can cause and cure: one line that names the file, tensor or field and says what to do."""

from __future__ import annotations


class DeltamendError(Exception):
    """Base of every error deltamend raises on purpose; the command line prints its text and exits 1."""


class CheckpointError(DeltamendError):
    """A checkpoint cannot be read: missing, truncated, corrupt, quantised, or pointing outside its folder."""


class PairingError(DeltamendError):
    """BASE and FINETUNED do not belong together: other architecture, other shapes, no tensor in common."""


class OutputError(DeltamendError):
    """OUT cannot be written: it exists, lies inside an input, or the disk is full."""


class UsageError(DeltamendError):
    """An option has a value that means nothing; the command line exits 2."""


class MethodError(UsageError):
    """A method is unknown, or one of its parameters is wrong."""


class FilterError(DeltamendError):
    """The filter failed on a tensor: NaN or Inf in it, or no LAPACK route gave a checked answer."""


class EvaluationError(DeltamendError):
    """An evaluation cannot be made, read or compared: a damaged record, an unknown task, items that do not match."""
