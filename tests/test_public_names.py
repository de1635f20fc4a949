"""The public face: which names there are, what each docstring says, and that options are declared in one place."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import get_type_hints

import pytest

import deltamend
from deltamend.repairing.options import PairKeywords, PairOptions, RepairKeywords, RepairOptions

FUNCTIONS = (
    "compare", "diagnose", "diff", "evaluate", "finetune", "get_method", "get_recipe", "open_checkpoint", "open_pair", "plan_repair", "recommend", "repair",
    "repair_module", "repair_state_dict", "score", "score_many", "tune", "verify",
)  # fmt: skip
ERRORS = (
    "CheckpointError", "DeltamendError", "EvaluationError", "FilterError", "MethodError", "OutputError", "PairingError", "UsageError",
)  # fmt: skip
DATA = (
    "CellsScore", "Checkpoint", "Comparison", "Diagnosis", "Difference", "Evaluation", "FinetuneRecord", "Manifest", "MatrixDiagnosis", "MatrixRepair", "Method",
    "OpenPair", "Recipe", "Recommendation", "RepairOptions", "RepairPlan", "RepairReport", "RepairedModule", "RepairedStateDict", "Score",
    "SpectrumRecord", "Suite", "TensorRecord", "Tuning",
)  # fmt: skip
RAISES_NOTHING = frozenset[str]()
"""Functions that raise no error of ours."""


def test_the_public_names_are_these() -> None:
    assert sorted(deltamend.__all__) == sorted([*FUNCTIONS, *ERRORS, *DATA, "__version__"])


def test_every_name_is_found_in_its_module_and_no_other_is() -> None:
    assert {*deltamend._MODULE_OF, "__version__"} == set(deltamend.__all__)
    for name in deltamend._MODULE_OF:
        assert getattr(deltamend, name).__module__ == f"deltamend.{deltamend._MODULE_OF[name]}"
    with pytest.raises(AttributeError, match="module 'deltamend' has no attribute 'nothing'"):
        _ = deltamend.nothing  # type: ignore[attr-defined]


def test_a_name_is_imported_only_when_it_is_asked_for() -> None:
    program = "import sys, deltamend; print([n for n in ('numpy', 'pydantic', 'scipy', 'typer') if n in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert shown == "[]\n"


@pytest.mark.slow
def test_nothing_else_is_importable_by_accident() -> None:
    program = "import deltamend, types; print([n for n in dir(deltamend) if not n.startswith('_')])"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    names = set(re.findall(r"'(\w+)'", shown))
    rooms = {path.stem for path in Path(deltamend.__file__).parent.iterdir()}
    assert names - set(deltamend.__all__) <= rooms
    assert all(isinstance(getattr(deltamend, name), types.ModuleType) for name in names - set(deltamend.__all__))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_public_function_says_what_it_takes_gives_and_raises(name: str) -> None:
    function = getattr(deltamend, name)
    page = inspect.getdoc(function) or ""
    for parameter in inspect.signature(function).parameters.values():
        assert re.search(rf"^\s+{parameter.name}: ", page, re.MULTILINE), f"{parameter.name} is not described"
    assert "Returns:" in page
    assert "Raises:" in page or name in RAISES_NOTHING
    assert "Source: " in page


@pytest.mark.parametrize("name", [*ERRORS, *DATA])
def test_a_public_class_says_what_it_is(name: str) -> None:
    kind = getattr(deltamend, name)
    assert (kind.__doc__ or "").strip()
    for attribute in getattr(kind, "__dataclass_fields__", {}):
        described = any(f"{attribute}:" in (one.__doc__ or "") for one in kind.__mro__)
        assert described, f"{attribute} is not described"


@pytest.mark.parametrize("name", [*FUNCTIONS, *ERRORS, *DATA])
def test_every_public_name_is_typed(name: str) -> None:
    found = getattr(deltamend, name)
    if inspect.isfunction(found):
        signature = inspect.signature(found)
        assert signature.return_annotation is not inspect.Signature.empty
        assert all(one.annotation is not inspect.Parameter.empty for one in signature.parameters.values())


@pytest.mark.parametrize(("keywords", "model"), [(PairKeywords, PairOptions), (RepairKeywords, RepairOptions)])
def test_keyword_arguments_are_the_fields_of_the_options(keywords: type, model: type[PairOptions]) -> None:
    assert list(get_type_hints(keywords)) == sorted(model.model_fields, key=list(get_type_hints(keywords)).index)
    assert all(field.description for field in model.model_fields.values())


@pytest.mark.slow
def test_the_version_is_that_of_the_package() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", deltamend.__version__)
    shown = subprocess.run([sys.executable, "-m", "deltamend", "--version"], capture_output=True, text=True, check=True)
    assert shown.stdout == f"deltamend {deltamend.__version__}\n"
