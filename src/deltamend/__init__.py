"""Repair a fine-tuned language model after the fact, from its base and fine-tuned checkpoints alone."""

from importlib.metadata import version as _version

from deltamend._api import plan_repair, repair
from deltamend.checkpoint.checkpoint_folder import Checkpoint
from deltamend.checkpoint.manifest import Manifest, MatrixRepair, SpectrumRecord, TensorRecord
from deltamend.checkpoint.verification import verify
from deltamend.choosing.compare_methods import Comparison, compare
from deltamend.choosing.recommendation import recommend
from deltamend.choosing.search import Tuning, tune
from deltamend.diagnosis.records import Diagnosis, MatrixDiagnosis
from deltamend.diagnosis.update import diagnose
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
from deltamend.evaluation.record import Evaluation
from deltamend.evaluation.run import evaluate
from deltamend.evaluation.suite import Suite
from deltamend.inputs.open_models import OpenPair, open_checkpoint, open_pair
from deltamend.matrices.difference import Difference, diff
from deltamend.methods.method import Method
from deltamend.methods.registry import get_method
from deltamend.repairing.options import Recommendation, RepairOptions
from deltamend.repairing.plan import RepairPlan
from deltamend.repairing.repair_report import RepairReport
from deltamend.repairing.to_memory import RepairedModule, RepairedStateDict, repair_module, repair_state_dict
from deltamend.scoring.across_cells import CellsScore
from deltamend.scoring.result import Score
from deltamend.scoring.run import score, score_many

__version__ = _version("deltamend")

__all__ = [
    "CellsScore",
    "Checkpoint",
    "CheckpointError",
    "Comparison",
    "DeltamendError",
    "Diagnosis",
    "Difference",
    "Evaluation",
    "EvaluationError",
    "FilterError",
    "Manifest",
    "MatrixDiagnosis",
    "MatrixRepair",
    "Method",
    "MethodError",
    "OpenPair",
    "OutputError",
    "PairingError",
    "Recommendation",
    "RepairOptions",
    "RepairPlan",
    "RepairReport",
    "RepairedModule",
    "RepairedStateDict",
    "Score",
    "SpectrumRecord",
    "Suite",
    "TensorRecord",
    "Tuning",
    "UsageError",
    "__version__",
    "compare",
    "diagnose",
    "diff",
    "evaluate",
    "get_method",
    "open_checkpoint",
    "open_pair",
    "plan_repair",
    "recommend",
    "repair",
    "repair_module",
    "repair_state_dict",
    "score",
    "score_many",
    "tune",
    "verify",
]
