"""Renamings, wrappers, stacks and vocabularies at random: what is not repaired is named, and what is repaired has its partner."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st

import deltamend
from tests.inputs.checkpoints import tokenizer
from tests.inputs.numpy_pairs import Array, Tensors, body, normal, read, tuned, write

PREFIXES = ("model.", "language_model.model.", "model.language_model.", "transformer.", "thinker.model.", "odd.")
TOWERS = ("vision_tower.", "model.vision_tower.", "visual.", "model.visual.encoder.", "audio_tower.", "model.audio.")
WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "module")
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)
"""Shrinking a failure takes minutes here, and the first one is small enough to read."""
TOKENS = [f"t{row}" for row in range(40)]


@dataclass(frozen=True)
class Layout:
    """How one side stores the model.

    Attributes:
        text: the prefix of its language model.
        towers: the prefix of each tower that it has, by the number of the tower.
        wrapped: the wrapper of some layers, by their numbers.
        around: a wrapper around all of it, or "".
        stacked: whether its experts are stacked.
    """

    text: str
    towers: dict[int, str]
    wrapped: dict[int, str]
    around: str
    stacked: bool

    def name(self, tower: int | None, inner: str) -> str:
        """The stored name of a tensor of a tower, or of the language model (None)."""
        name = (self.text if tower is None else self.towers[tower]) + inner
        for layer, wrapper in self.wrapped.items():
            name = name.replace(f"layers.{layer}.", f"layers.{layer}.{wrapper}.")
        return f"{self.around}.{name}" if self.around else name


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    prefixes = draw(st.permutations(TOWERS))
    return Layout(
        draw(st.sampled_from(PREFIXES)),
        {tower: prefixes[tower] for tower in draw(st.sets(st.sampled_from([0, 1]), max_size=2))},
        draw(st.dictionaries(st.sampled_from([0, 1]), st.sampled_from(WRAPPERS), max_size=2)),
        draw(st.sampled_from(["", "", "module", "_orig_mod"])),
        draw(st.booleans()),
    )


def stored(layout: Layout, parts: dict[int | None, Tensors], experts: list[Array]) -> Tensors:
    """The tensors of a model as a layout stores them."""
    tensors = {
        layout.name(tower, inner): tensor
        for tower, own in parts.items()
        if tower is None or tower in layout.towers
        for inner, tensor in own.items()
    }
    place = "layers.0.mlp.experts"
    if layout.stacked:
        tensors[layout.name(None, f"{place}.down_proj")] = np.stack(experts)
    else:
        for number, expert in enumerate(experts):
            tensors[layout.name(None, f"{place}.{number}.down_proj.weight")] = expert
    return tensors


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow], phases=PHASES)
@given(
    layouts(),
    layouts(),
    st.integers(0, 2**32),
    st.sampled_from(["same", "grown", "new in padding", "moved"]),
    st.booleans(),
)
def test_no_matrix_stays_unrepaired_without_a_word(
    ours: Layout, theirs: Layout, seed: int, vocabulary: str, towers_alike: bool
) -> None:
    random = np.random.default_rng(seed)
    rows = 44 if vocabulary == "grown" else 40
    before: dict[int | None, Tensors] = {
        None: body(random, prefix=""),
        0: body(random, prefix="", width=24),
        1: body(random, prefix="", width=24 if towers_alike else 20, layers=3),
    }
    after: dict[int | None, Tensors] = {tower: tuned(random, own) for tower, own in before.items()}
    experts = [normal(random, (32, 16)) for _ in range(3)]
    tuned_experts = [expert + normal(random, expert.shape, 0.002) for expert in experts]
    embedding = normal(random, (40, 32))
    tokens = {"same": TOKENS[:36], "grown": [*TOKENS, "n0", "n1"], "new in padding": [*TOKENS[:36], "n"]}
    new_tokens = tokens.get(vocabulary, ["n", *TOKENS[:35]])
    own_tokens = TOKENS if vocabulary == "grown" else TOKENS[:36]
    partner = [own_tokens.index(token) if token in own_tokens else None for token in new_tokens] + [
        row if row < 40 and row >= len(own_tokens) else None for row in range(len(new_tokens), rows)
    ]
    tuned_embedding = np.stack(
        [normal(random, (32,)) if own is None else embedding[own] + normal(random, (32,), 0.002) for own in partner]
    )
    right_embedding = np.stack(
        [tuned_embedding[row] if own is None else embedding[own] for row, own in enumerate(partner)]
    )
    before[None]["embed_tokens.weight"], after[None]["embed_tokens.weight"] = embedding, tuned_embedding

    finetuned = stored(theirs, after, tuned_experts)
    in_base: dict[int | None, Tensors] = {
        tower: own for tower, own in before.items() if tower is None or tower in ours.towers
    }
    in_base[None] = in_base[None] | {"embed_tokens.weight": right_embedding}
    right = finetuned | {
        name: tensor
        for name, tensor in stored(
            theirs, in_base | {tower: {} for tower in (0, 1) if tower not in in_base}, experts
        ).items()
        if tensor.ndim > 1
    }
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        folders = write(place / "base", stored(ours, before, experts)), write(place / "finetuned", finetuned)
        tokenizer(folders[0], own_tokens)
        tokenizer(folders[1], new_tokens)
        refused = ""
        try:
            report = deltamend.repair(*folders, place / "out", method="revert")
            out = read(place / "out")
        except deltamend.PairingError as error:
            refused = str(error)
    event("refused" if refused else "repaired")
    if refused:
        assert "\n" not in refused
        assert not set(theirs.towers) <= set(ours.towers), f"refused for no reason: {refused}"
        return
    records = {tensor.name: tensor for tensor in report.tensors}
    assert records.keys() == finetuned.keys() == out.keys()
    for name, record in records.items():
        if record.action == "keep":
            assert record.reason
            assert np.array_equal(out[name], finetuned[name]), name
        if finetuned[name].ndim > 1:
            assert np.array_equal(out[name], right[name]), (name, record.action, record.reason)
    assert report.coverage is not None
    matrices = [name for name in finetuned if finetuned[name].ndim > 1]
    repaired = [name for name in matrices if records[name].action == "filter"]
    assert (report.coverage.matrices, report.coverage.repaired) == (len(matrices), len(repaired))
