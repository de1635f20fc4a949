"""Repair a fine-tuned language model after the fact, from its base and fine-tuned checkpoints alone.

A public name is imported from its module when it is first asked for, so that `deltamend --help` need not wait for all of them.
"""

import typing as _typing
from importlib import import_module as _import_module

if _typing.TYPE_CHECKING:
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
    from deltamend.recipes.fine_tuning import FinetuneRecord, finetune
    from deltamend.recipes.recipe import Recipe
    from deltamend.recipes.registry import get_recipe
    from deltamend.repairing.options import Recommendation, RepairOptions
    from deltamend.repairing.plan import RepairPlan
    from deltamend.repairing.repair_report import RepairReport
    from deltamend.repairing.to_memory import RepairedModule, RepairedStateDict, repair_module, repair_state_dict
    from deltamend.scoring.across_cells import CellsScore
    from deltamend.scoring.result import Score
    from deltamend.scoring.run import score, score_many

    __version__: str

_NAMES_OF_MODULES = {
    "_api": (
        "plan_repair",
        "repair",
    ),
    "checkpoint.checkpoint_folder": ("Checkpoint",),
    "checkpoint.manifest": (
        "Manifest",
        "MatrixRepair",
        "SpectrumRecord",
        "TensorRecord",
    ),
    "checkpoint.verification": ("verify",),
    "choosing.compare_methods": (
        "Comparison",
        "compare",
    ),
    "choosing.recommendation": ("recommend",),
    "choosing.search": (
        "Tuning",
        "tune",
    ),
    "diagnosis.records": (
        "Diagnosis",
        "MatrixDiagnosis",
    ),
    "diagnosis.update": ("diagnose",),
    "errors": (
        "CheckpointError",
        "DeltamendError",
        "EvaluationError",
        "FilterError",
        "MethodError",
        "OutputError",
        "PairingError",
        "UsageError",
    ),
    "evaluation.record": ("Evaluation",),
    "evaluation.run": ("evaluate",),
    "evaluation.suite": ("Suite",),
    "inputs.open_models": (
        "OpenPair",
        "open_checkpoint",
        "open_pair",
    ),
    "matrices.difference": (
        "Difference",
        "diff",
    ),
    "methods.method": ("Method",),
    "methods.registry": ("get_method",),
    "recipes.fine_tuning": (
        "FinetuneRecord",
        "finetune",
    ),
    "recipes.recipe": ("Recipe",),
    "recipes.registry": ("get_recipe",),
    "repairing.options": (
        "Recommendation",
        "RepairOptions",
    ),
    "repairing.plan": ("RepairPlan",),
    "repairing.repair_report": ("RepairReport",),
    "repairing.to_memory": (
        "RepairedModule",
        "RepairedStateDict",
        "repair_module",
        "repair_state_dict",
    ),
    "scoring.across_cells": ("CellsScore",),
    "scoring.result": ("Score",),
    "scoring.run": (
        "score",
        "score_many",
    ),
}
_MODULE_OF = {name: module for module, names in _NAMES_OF_MODULES.items() for name in names}

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
    "FinetuneRecord",
    "Manifest",
    "MatrixDiagnosis",
    "MatrixRepair",
    "Method",
    "MethodError",
    "OpenPair",
    "OutputError",
    "PairingError",
    "Recipe",
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
    "finetune",
    "get_method",
    "get_recipe",
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


if not _typing.TYPE_CHECKING:  # with this function, a type checker would take any name for a public one

    def __getattr__(name: str) -> object:
        found: object
        if name == "__version__":
            from importlib.metadata import version

            found = version("deltamend")
        elif name in _MODULE_OF:
            found = getattr(_import_module(f"deltamend.{_MODULE_OF[name]}"), name)
        else:
            raise AttributeError(f"module 'deltamend' has no attribute {name!r}")
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
