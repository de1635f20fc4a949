"""Repair a fine-tuned language model after the fact, from its base and fine-tuned checkpoints alone."""

from deltamend.checkpoint.checkpoint_folder import Checkpoint
from deltamend.checkpoint.manifest import Manifest, MatrixRepair, SpectrumRecord, TensorRecord
from deltamend.checkpoint.verification import verify
from deltamend.choosing.recommendation import Recommendation, recommend
from deltamend.diagnosis import Diagnosis, MatrixDiagnosis, diagnose
from deltamend.errors import (
    CheckpointError,
    DeltamendError,
    EvaluationError,
    FilterError,
    MethodError,
    OutputError,
    PairingError,
    UsageError,
)
from deltamend.inputs.open_models import open_checkpoint
from deltamend.methods.method import Method
from deltamend.methods.registry import get_method
from deltamend.repairing.run import RepairReport, repair
from deltamend.repairing.to_memory import RepairedStateDict, repair_module, repair_state_dict
from deltamend.scoring.result import Score
from deltamend.scoring.scored import score

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "DeltamendError",
    "Diagnosis",
    "EvaluationError",
    "FilterError",
    "Manifest",
    "MatrixDiagnosis",
    "MatrixRepair",
    "Method",
    "MethodError",
    "OutputError",
    "PairingError",
    "Recommendation",
    "RepairReport",
    "RepairedStateDict",
    "Score",
    "SpectrumRecord",
    "TensorRecord",
    "UsageError",
    "diagnose",
    "get_method",
    "open_checkpoint",
    "recommend",
    "repair",
    "repair_module",
    "repair_state_dict",
    "score",
    "verify",
]
