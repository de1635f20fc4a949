"""Whether BASE is the parent: by a sample of every matrix, before anything is repaired."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import deltamend
from tests.inputs.checkpoints import Cli
from tests.inputs.numpy_pairs import Array, Tensors, body, normal, read, tuned, write

Change = Callable[[Tensors, np.random.Generator], None]

Q = "model.layers.1.self_attn.q_proj.weight"


def pair(tmp_path: Path, change: Change, scale: float = 0.002, width: int = 64) -> tuple[Path, Path]:
    """A base, and a descendant of it that `change` has spoilt."""
    random = np.random.default_rng(0)
    base = body(random, width=width) | {"model.embed_tokens.weight": normal(random, (160, width))}
    finetuned = tuned(random, base, scale)
    change(finetuned, random)
    return write(tmp_path / "base", base), write(tmp_path / "finetuned", finetuned)


def nothing(_: Tensors, __: np.random.Generator) -> None:
    pass


def transposed(tensors: Tensors, _: np.random.Generator) -> None:
    tensors[Q] = tensors[Q].T.copy()


def heads_permuted(tensors: Tensors, _: np.random.Generator) -> None:
    tensors[Q] = np.roll(tensors[Q], 16, axis=0)


def rotary_part_permuted(tensors: Tensors, _: np.random.Generator) -> None:
    """A quarter of the rows, as where only some dimensions of each head are rotated."""
    for name in tensors:
        if "q_proj" in name:
            rows = np.arange(len(tensors[name]))
            rows[::4] = np.roll(rows[::4], 3)
            tensors[name] = tensors[name][rows]


def scales_missing(tensors: Tensors, _: np.random.Generator) -> None:
    tensors[Q] = 100 * tensors[Q]


def another_model(tensors: Tensors, random: np.random.Generator) -> None:
    for name, tensor in tensors.items():
        tensors[name] = normal(random, tensor.shape)


def set_anew(tensors: Tensors, random: np.random.Generator) -> None:
    tensors[Q] = normal(random, (64, 64))


WRONG: dict[Change, tuple[str, ...]] = {
    transposed: (f"1 of 7 matrices of FINETUNED do not come from BASE: '{Q}' holds", f"'{Q}' is transposed on one side"),
    heads_permuted: ("1 of 7 matrices", "are in another order, as where heads or experts are permuted: row 0 of FINETUNED is row 48"),
    rotary_part_permuted: ("holds W_base at some of the places that were read", "are in another order"),
    scales_missing: (f"'{Q}' holds 100 times W_base (correlation 0.99", "is BASE's times 100, as where the scales"),
    another_model: ("BASE is not the parent of FINETUNED: 7 of 7 matrices", "‖Δ‖/‖W_base‖ 1.4", "BASE is another model"),
    set_anew: ("1 of 7 matrices", "set anew in FINETUNED"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("change", WRONG, ids=lambda change: change.__name__)
def test_what_does_not_come_from_base_stops_with_what_was_found_and_the_likely_cause(
    change: Change, tmp_path: Path, deltamend_cli: Cli
) -> None:
    # Whether single rows are permuted can be seen where a row has some hundred entries.
    folders = pair(tmp_path, change, width=512 if change is rotary_part_permuted else 64)
    for command in (["repair", *folders, tmp_path / "out"], ["diagnose", *folders]):
        printed = deltamend_cli(*command)
        assert (printed.code, len(printed.err.splitlines())) == (1, 1)
        for piece in (*WRONG[change], "--exclude REGEX", "--allow-unrelated to go on"):
            assert piece in printed.err, printed.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("scale", [0.0, 1e-4, 0.002, 0.02, 0.08])
def test_a_descendant_passes_however_large_its_update_is(scale: float, tmp_path: Path) -> None:
    report = deltamend.repair(*pair(tmp_path, nothing, scale), tmp_path / "out", method="wise-ft")
    found = report.parent
    assert found is not None
    assert found.verdict == ("yes" if scale < 0.01 else "doubtful")
    assert (found.matrices, found.unrelated) == (7, ())
    assert found.distance == pytest.approx(scale / 0.02, rel=0.1, abs=1e-6)
    assert found.correlation == pytest.approx((1 + (scale / 0.02) ** 2) ** -0.5, abs=0.05)


@pytest.mark.slow
def test_the_flag_goes_on_and_the_report_names_the_matrices(tmp_path: Path) -> None:
    folders = pair(tmp_path, transposed)
    report = deltamend.repair(*folders, tmp_path / "out", method="revert", allow_unrelated=True)
    assert report.parent is not None
    assert (report.parent.verdict, report.parent.unrelated) == ("in part", (Q,))
    assert np.array_equal(read(tmp_path / "out")[Q], read(folders[0])[Q])
    found = deltamend.diagnose(*folders, allow_unrelated=True)
    assert (found.commands, found.parent) == ((), report.parent)
    assert found.sentences[0] == f"{report.parent.sentence}."


def test_a_matrix_that_is_excluded_is_not_asked_about(tmp_path: Path) -> None:
    folders = pair(tmp_path, transposed)
    report = deltamend.repair(*folders, tmp_path / "out", exclude="layers.1.self_attn.q_proj", method="wise-ft")
    assert report.parent is not None
    assert (report.parent.verdict, report.parent.matrices) == ("yes", 6)
    assert np.array_equal(read(tmp_path / "out")[Q], read(folders[1])[Q])


def test_one_expert_of_a_stack_that_is_transposed_is_named(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    base = body(random) | {"model.layers.0.mlp.experts.down_proj": normal(random, (4, 32, 32))}
    finetuned = tuned(random, base)
    stack = finetuned["model.layers.0.mlp.experts.down_proj"]
    stack[2] = stack[2].T.copy()
    folders = write(tmp_path / "base", base), write(tmp_path / "finetuned", finetuned)
    with pytest.raises(deltamend.PairingError, match=r"down_proj\[2\]' is transposed on one side"):
        deltamend.repair(*folders, tmp_path / "out")


def test_rows_of_a_vocabulary_may_be_trained_anew(tmp_path: Path) -> None:
    def some_rows(tensors: Tensors, random: np.random.Generator) -> None:
        tensors["model.embed_tokens.weight"][100:150] = normal(random, (50, 64))

    report = deltamend.repair(*pair(tmp_path, some_rows), tmp_path / "out", method="wise-ft")
    assert report.parent is not None
    assert report.parent.verdict == "yes"


def quantised(weights: Array) -> Array:
    """Rounded to 16 levels a block of 32, as GGUF's Q4_0 does."""
    blocks = weights.reshape(-1, 32)
    scale = np.abs(blocks).max(axis=1, keepdims=True) / 8
    rounded: Array = (np.clip(np.round(blocks / scale), -8, 7) * scale).reshape(weights.shape).astype(np.float32)
    return rounded


@pytest.mark.parametrize("trained_from", ["full precision", "4 bits"])
def test_a_base_in_4_bits_is_told_unless_finetuned_was_trained_from_it(trained_from: str, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    full = body(random, width=64)
    base = {name: quantised(tensor) if tensor.ndim == 2 else tensor for name, tensor in full.items()}
    finetuned = tuned(random, full if trained_from == "full precision" else base, 1e-4)
    folders = write(tmp_path / "base", base), write(tmp_path / "finetuned", finetuned)
    report = deltamend.repair(*folders, tmp_path / "out", method="wise-ft")
    assert report.parent is not None
    told = "BASE's weights have at most" in report.parent.sentence
    assert told == (trained_from == "full precision")


def test_nothing_is_said_where_base_is_zero(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    base = {"a.weight": np.zeros((40, 40), np.float32)}
    folders = write(tmp_path / "base", base), write(tmp_path / "finetuned", tuned(random, base))
    report = deltamend.repair(*folders, tmp_path / "out")
    assert report.parent is not None
    assert (report.parent.verdict, report.parent.matrices, report.parent.distance) == ("unknown", 0, None)


def test_models_in_memory_are_asked_as_well() -> None:
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(0)
    base, other = ({"w": torch.randn(64, 64, generator=generator)} for _ in range(2))
    with pytest.raises(deltamend.PairingError, match="BASE is not the parent of FINETUNED"):
        deltamend.repair_state_dict(base, other)
    repaired = deltamend.repair_state_dict(base, other, allow_unrelated=True)
    assert repaired.parent.verdict == "no"


def test_a_matrix_that_grew_in_training_is_a_descendant(tmp_path: Path) -> None:
    def grown(tensors: Tensors, random: np.random.Generator) -> None:
        tensors[Q] = 3.5 * tensors[Q] + normal(random, (64, 64), 0.1)

    report = deltamend.repair(*pair(tmp_path, grown), tmp_path / "out", method="wise-ft")
    assert report.parent is not None
    assert (report.parent.verdict, report.parent.unrelated) == ("yes", ())
    assert report.parent.farthest is not None
    assert report.parent.farthest > 3
