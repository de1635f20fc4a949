"""What an update looks like, matrix by matrix, and whether a spectral threshold means on it what the paper says."""

from deltamend.diagnosis.records import Diagnosis, MatrixDiagnosis
from deltamend.diagnosis.update import diagnose

__all__ = ["Diagnosis", "MatrixDiagnosis", "diagnose"]
