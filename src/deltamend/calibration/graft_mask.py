"""Learn from texts which entries of an update a task needs: the mask of the method `graft`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deltamend.calibration.checks import refuse_not_finite
from deltamend.calibration.names_in_files import stored_names
from deltamend.calibration.tensor_files import write_tensors
from deltamend.calibration.texts import as_examples, read_texts
from deltamend.checkpoint.output_checks import check_output_file
from deltamend.errors import PairingError
from deltamend.language_models.loading import load, quiet_transformers, run_errors
from deltamend.language_models.training import Example, answer_loss
from deltamend.methods.elementwise import Tile, magnitudes, summed
from deltamend.methods.largest_share import cut_at
from deltamend.methods.random_bits import tie_breaker
from deltamend.progress import Progress

if TYPE_CHECKING:
    import torch

_START = 3.0
"""The mask starts at σ(±3), 5% away from 0 and 1, so that entries can change sides within a few steps."""


def write_graft_mask(
    base: Path,
    finetuned: Path,
    texts: Path,
    out: Path,
    *,
    density: float = 0.01,
    steps: int = 50,
    batch: int = 8,
    rate: float = 1.0,
    chat: bool = False,
    max_tokens: int = 512,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> tuple[float, float]:
    """Learn a mask γ for W = W_base + γ ⊙ Δ that lowers the loss on the texts (Panigrahi et al. 2023, section 2).

    As in the paper, γ starts as the mask γ₀ of the largest |Δ| of the whole model, and is relaxed to
    γ₀ ⊙ (1 − σ(S)) + (1 − γ₀) ⊙ σ(S), where S descends the gradient of the loss. The unit of S is ours, so that `rate` means
    the same for every model: in the first step, as many entries have a gradient above one unit as the mask has entries. In
    the end the mask is the share `density` of the entries with the largest γ. Only matrices are masked; other parameters
    are the fine-tuned ones. Both models, the gradient and S are in memory in fp32, which takes four times the size of the
    model.

    Args:
        base: folder of the checkpoint fine-tuning started from.
        finetuned: folder of its descendant.
        texts: JSONL file; see `CalibrationText`.
        out: safetensors file to write, uint8, one tensor of 0 and 1 for each matrix under its name.
        density: share of the matrices' entries that is grafted.
        steps: gradient steps.
        batch: texts in each step.
        rate: how many units S moves in a step for a gradient of one unit.
        chat: whether prompts go through the chat template.
        max_tokens: longer texts are cut.
        overwrite: whether a file that is there may be replaced.
        progress: called after each step.

    Returns:
        Mean loss per predicted token over all texts, in nats: with the mask it started from, and with the mask it learnt.

    Raises:
        UsageError: the texts cannot be read, or one of them is too short.
        CheckpointError: a model cannot be loaded or holds NaN or Inf, or a checkpoint has no tensor for a matrix.
        PairingError: the two models do not have the same parameters.
        OutputError: `out` exists, belongs to an input or cannot be written.
    """
    check_output_file(out, [base, finetuned, texts], overwrite=overwrite)
    read = read_texts(texts)
    with quiet_transformers():
        loaded, tuned = load(base), load(finetuned).model
    names = stored_names(
        tuned, [name for name, parameter in tuned.named_parameters() if parameter.ndim == 2], finetuned
    )
    for folder, model in ((base, loaded.model), (finetuned, tuned)):
        refuse_not_finite(model.named_parameters(), f"{folder}: the weights of")
    with run_errors(finetuned):
        examples = as_examples(read, loaded.tokenizer, chat=chat, max_tokens=max_tokens)
        graft = _Graft(loaded.model, tuned, density)
        before = graft.loss(examples, batch)
        for step, texts_of_step in enumerate(_batches(examples, batch, steps), 1):
            graft.learn(texts_of_step, rate)
            if progress is not None:
                progress(f"step {step}", step / steps)
        graft.settle()
        after = graft.loss(examples, batch)
    masks = {names[name]: mask for name, mask in graft.masks().items() if name in names}
    write_tensors(masks, out, {"format": "pt"})
    return before, after


def _batches(examples: Sequence[Example], batch: int, steps: int) -> list[list[Example]]:
    """The texts of each step: all texts in their order, from the start again when they run out."""
    endless = cycle(examples)
    return [list(islice(endless, min(batch, len(examples)))) for _ in range(steps)]


class _Graft:
    """A base model to which the masked update is added, and S, the parameters of the mask."""

    def __init__(self, model: Any, tuned: Any, density: float) -> None:
        import torch

        self._model, self._density = model, density
        theirs = dict(tuned.named_parameters())
        self._base: dict[str, torch.Tensor] = {}
        self._deltas: dict[str, torch.Tensor] = {}
        self._unit: float | None = None
        for name, parameter in model.named_parameters():
            if name not in theirs or theirs[name].shape != parameter.shape:
                raise PairingError(
                    f"tensor {name!r} is not in both BASE and FINETUNED with the same shape, which a mask needs; give a pair of the same layout"
                )
            if parameter.ndim == 2:
                self._base[name] = parameter.detach().clone()
                self._deltas[name] = theirs[name].detach() - self._base[name]
            else:
                parameter.data.copy_(theirs[name].detach())
        self._first = self._largest({name: delta.numpy() for name, delta in self._deltas.items()})
        self._soft = {name: torch.full_like(delta, -_START) for name, delta in self._deltas.items()}
        self._hard = self._first

    def learn(self, batch: list[Example], rate: float) -> None:
        """One step of S down the gradient of the loss."""
        import torch

        parameters = dict(self._model.named_parameters())
        for name, delta in self._deltas.items():
            away = self._soft[name].sigmoid()
            gamma = torch.where(self._first[name], 1.0 - away, away)
            parameters[name].data.copy_(torch.addcmul(self._base[name], gamma, delta))
        tokens = sum(len(example.answer) for example in batch)
        (answer_loss(self._model, batch) / tokens).backward()  # type: ignore[no-untyped-call]
        slopes = {}
        for name, delta in self._deltas.items():
            away = self._soft[name].sigmoid()
            slope = parameters[name].grad * delta * away * (1.0 - away)
            slopes[name] = torch.where(self._first[name], -slope, slope)
        self._model.zero_grad()
        if self._unit is None:
            sizes = {name: slope.numpy() for name, slope in slopes.items()}
            self._unit = max(self._cut(sizes).score, np.finfo(np.float32).tiny)
        for name, slope in slopes.items():
            self._soft[name] -= slope * (rate / self._unit)

    def settle(self) -> None:
        """Make the mask 0 or 1: it selects the share `density` of the entries with the largest γ."""
        import torch

        gammas = {}
        for name, soft in self._soft.items():
            away = soft.double().sigmoid().float()
            gammas[name] = torch.where(self._first[name], 1.0 - away, away).numpy()
        self._hard = self._largest(gammas)

    def loss(self, examples: Sequence[Example], batch: int) -> float:
        """Mean loss per predicted token with the mask of 0 and 1, in nats."""
        import torch

        parameters = dict(self._model.named_parameters())
        for name, delta in self._deltas.items():
            parameters[name].data.copy_(self._base[name] + self._hard[name] * delta)
        with torch.no_grad():
            spans = range(0, len(examples), batch)
            total = sum(float(answer_loss(self._model, examples[start : start + batch])) for start in spans)
        return total / sum(len(example.answer) for example in examples)

    def masks(self) -> dict[str, torch.Tensor]:
        """The mask of each matrix, uint8, 0 or 1, by the name of the matrix."""
        import torch

        return {name: mask.to(torch.uint8) for name, mask in self._hard.items()}

    def _largest(self, scores: dict[str, Any]) -> dict[str, torch.Tensor]:
        """The share of the largest |score| over the whole model, as `graft` selects it."""
        import torch

        cut = self._cut(scores)
        chosen = {}
        for name, values in scores.items():
            tile = Tile(0, 0, np.abs(values))
            chosen[name] = torch.from_numpy(cut.selects(tile.values, tile, tie_breaker(name, values.shape)))
        return chosen

    def _cut(self, scores: dict[str, Any]) -> Any:
        return cut_at(lambda count: summed(count(size) for size in map(magnitudes, scores.values())), self._density)
