"""The report and its warning: when rounding undoes a repair, what is advised, and in which words."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

import deltamend
from deltamend.checkpoint.manifest import Manifest, PartRecord
from deltamend.cli.options import spelled_on_command_line
from deltamend.errors import spell
from deltamend.repairing.repair_report import RepairReport, library_versions, rounding_warning
from tests.conftest import Pair

MUCH = (
    "rounding changed the kept update by 50.00 %, so that the written weights hold much less of it than the method kept; "
    "write them with "
)
SOME = (
    "rounding changed the weights by 20.00 % of what the repair removed, so that this part of the repair may be lost; "
    "write them with "
)


@pytest.fixture(scope="module")
def manifest(llama_pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """The manifest of a repair in fp32."""
    out = tmp_path_factory.mktemp("report") / "out"
    return deltamend.repair(llama_pair.base, llama_pair.finetuned, out, out_dtype="fp32").manifest


def with_rounding(manifest: Manifest, *, error: float, removed: float, **changes: object) -> Manifest:
    """The manifest as if rounding had changed every kept update of norm 1 by `error`, and `removed` had been removed."""
    tensors = [
        tensor.model_copy(
            update={"delta_norm": 2.0, "kept_norm": 1.0, "realised_error": error, "removed_norm": removed, **changes}
        )
        for tensor in manifest.tensors
        if tensor.action == "filter"
    ]
    return manifest.model_copy(update={"tensors": tuple(tensors)})


def test_little_rounding_is_no_warning(manifest: Manifest) -> None:
    assert rounding_warning(manifest) is None
    assert rounding_warning(with_rounding(manifest, error=0.09, removed=1.0)) is None
    assert rounding_warning(with_rounding(manifest, error=0.09, removed=0.0)) is None  # nothing was removed


@pytest.mark.parametrize(("error", "removed", "text"), [(0.5, 1.0, MUCH), (0.02, 0.1, SOME)])
def test_the_warning_says_what_is_lost_and_what_to_do(
    manifest: Manifest, error: float, removed: float, text: str
) -> None:
    lossy = with_rounding(manifest, error=error, removed=removed)
    warning = RepairReport(Path("out"), lossy).warning
    assert warning == f'{text}out_dtype="fp32" or output="adapter"'
    assert spell(rounding_warning(lossy) or "", spelled_on_command_line) == f"{text}--out-dtype fp32 or --as adapter"


def test_an_adapter_is_only_advised_where_one_can_be_written(manifest: Manifest) -> None:
    part = PartRecord(label="[q]", outcome="filtered", reason="")
    for changes in ({"method": "wise-ft alpha=0.5"}, {"parts": (part, part)}):
        lossy = with_rounding(manifest, error=0.5, removed=1.0, **changes)
        assert RepairReport(Path("out"), lossy).warning == f'{MUCH}out_dtype="fp32"'


def test_the_report_has_the_figures_of_the_manifest(manifest: Manifest) -> None:
    report = RepairReport(Path("out"), with_rounding(manifest, error=0.5, removed=1.0))
    assert report.kept_energy == pytest.approx(0.25)
    assert report.realised_error == pytest.approx(0.5)
    assert report.undone_by_rounding == pytest.approx(0.5)
    assert report.tensors == report.manifest.tensors
    assert report.written


def test_the_versions_are_those_that_figures_depend_on() -> None:
    found = library_versions()
    assert set(found) == {"python", "deltamend", "ml_dtypes", "numpy", "scipy"}
    assert found["deltamend"] == deltamend.__version__


@pytest.mark.parametrize("output", ["checkpoint", "adapter"])
def test_a_pair_without_an_update_is_a_warning(
    llama_pair: Pair, tmp_path: Path, output: Literal["checkpoint", "adapter"]
) -> None:
    report = deltamend.repair(llama_pair.base, llama_pair.base, tmp_path / "out", output=output)

    assert report.warning is not None
    assert "there was nothing to repair; check that FINETUNED is the fine-tuned model" in report.warning
