"""What is wrong with the options of a repair is said before a checkpoint is opened, downloaded or unpacked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import deltamend
from deltamend.machine.threads import Workers
from deltamend.progress import count_reporter
from deltamend.repairing.options import RepairOptions, make_options
from deltamend.repairing.yaml_config import RepairConfig, options_of
from tests.conftest import Printed


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"method": "dg-hrad"}, "did you mean 'dg-hard'"),
        ({"parameters": {"zz": 1}}, "zz"),
        ({"vectors": "half"}, "vectors: 'half'"),
        ({"method": "auto", "output": "adapter"}, "auto"),
        ({"method": "auto", "parameters": {"alpha": 1}}, "auto"),
    ],
)
def test_a_wrong_option_is_said_before_the_models_are_opened(
    options: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(deltamend.UsageError, match=says):
        deltamend.repair(tmp_path / "gone", tmp_path / "gone-too", tmp_path / "out", **options)


@pytest.mark.parametrize(
    "flags",
    [("--method", "dg-hrad"), ("--set", "zz=1"), ("--vectors", "half"), ("--method", "auto", "--as", "adapter")],
)
def test_the_command_says_it_before_the_models_are_opened(
    flags: tuple[str, ...], tmp_path: Path, deltamend_cli: Callable[..., Printed]
) -> None:
    printed = deltamend_cli("repair", tmp_path / "gone", tmp_path / "gone-too", tmp_path / "out", *flags)
    assert (printed.code, printed.err.count("\n")) == (2, 1)
    assert "no such folder" not in printed.err


def test_the_dtype_of_a_config_counts_where_out_dtype_is_empty() -> None:
    config = RepairConfig.model_validate({"out_dtype": None, "dtype": "bfloat16"})
    assert options_of(config)["out_dtype"] == "bfloat16"
    assert options_of(RepairConfig.model_validate({"out_dtype": "fp32", "dtype": "bfloat16"}))["out_dtype"] == "fp32"


def test_an_integer_for_vectors_is_recorded_as_it_was_given() -> None:
    assert str(make_options(RepairOptions, {"vectors": 1}).vectors) == "1"
    assert str(make_options(RepairOptions, {"vectors": 0.5}).vectors) == "0.5"
    assert str(RepairConfig.model_validate({"vectors": 1}).vectors) == "1.0"


def test_a_config_that_is_no_config_of_transformers_is_heeded() -> None:
    def module(vocabulary: int, kind: str) -> torch.nn.Module:
        made = torch.nn.Module()
        made.embed_tokens = torch.nn.Embedding(vocabulary, 8)
        made.config = SimpleNamespace(vocab_size=vocabulary, model_type=kind)  # type: ignore[assignment]
        return made

    for vocabulary, kind in ((18, "x"), (16, "y")):
        finetuned = module(vocabulary, kind)
        repaired = deltamend.repair_module(module(16, "x"), finetuned, method="wise-ft", allow_unrelated=True)
        assert repaired.records["embed_tokens.weight"].outcome == "filtered"


def test_a_prefix_that_was_found_in_memory_is_noted() -> None:
    base = {"model.layers.0.weight": torch.zeros(6, 6)}
    finetuned = {"language_model.model.layers.0.weight": torch.ones(6, 6)}
    repaired = deltamend.repair_state_dict(base, finetuned, method="wise-ft", parameters={"alpha": 0.5})
    assert torch.equal(repaired.tensors["language_model.model.layers.0.weight"], torch.full((6, 6), 0.5))
    assert len(repaired.notes) == 1
    assert "1 of 1 matrices" in repaired.notes[0]


def test_progress_in_memory_is_told_as_tensors_end() -> None:
    base = {name: torch.zeros(4, 4) for name in "abc"}
    finetuned = {name: torch.ones(4, 4) for name in "abc"}
    shares: list[float] = []
    deltamend.repair_state_dict(base, finetuned, method="wise-ft", progress=lambda _name, share: shares.append(share))
    assert shares == [pytest.approx(share) for share in (1 / 3, 2 / 3, 1)]


def test_a_share_never_falls_whichever_thread_reports() -> None:
    shares: list[float] = []
    report = count_reporter(lambda _name, share: shares.append(share), 200)
    with Workers(4) as team:
        team.map(report, [str(number) for number in range(200)])
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
