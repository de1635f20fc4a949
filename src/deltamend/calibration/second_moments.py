"""The second moment of the inputs of every linear layer, summed while a model reads texts, and its principal directions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from deltamend.progress import Progress

if TYPE_CHECKING:
    import torch

_AT_ONCE = 8
"""Number of texts in one forward pass."""
_NOTHING = 1e-7
"""Eigenvalues below this share of the largest are nothing but the rounding of float32."""


class InputMoment:
    """C, the mean of xxᵀ/‖x‖² over the inputs x of one layer.

    While a layer with n inputs has been given fewer than n of them, the directions x/‖x‖ themselves are kept, as they are
    smaller than C and their principal directions are found faster; then their products are summed.

    Attributes:
        parts: float32 tensors without which C is not finite: directions, each (k, n), or the one sum, (n, n).
        tokens: what the sum is divided by, so that it is a mean; 1 until it is known.
    """

    def __init__(self) -> None:
        """A moment of no inputs."""
        self.parts: list[torch.Tensor] = []
        self.tokens = 1
        self._summed = False

    def add(self, directions: torch.Tensor) -> None:
        """Add inputs that were scaled to length 1, (k, n) float32."""
        self.parts.append(directions)
        if self._summed or sum(map(len, self.parts)) >= directions.shape[1]:
            first, *others = self.parts
            total = first if self._summed else first.T @ first
            for part in others:
                total = total + part.T @ part
            self.parts, self._summed = [total], True

    def principal_directions(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Eigenvectors of C, (k, n), and its eigenvalues, (k,), float32, as the functions below."""
        import torch

        if self._summed:
            return principal_directions(self.parts[0] / self.tokens)
        return principal_directions_of_rows(torch.cat(self.parts) / self.tokens**0.5)


def principal_directions(moment: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvectors (k, n) and eigenvalues (k,) of (n, n) float32, the largest first; those that are only rounding are left out."""
    import torch

    values, vectors = (found.float() for found in torch.linalg.eigh(moment.double()))
    values, vectors = values.flip(0), vectors.flip(1).T
    real = _real(values)
    return vectors[:real].contiguous(), values[:real].contiguous()


def principal_directions_of_rows(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same of rowsᵀ·rows, from rows of shape (m, n) with m < n, float32: by the (m, m) matrix rows·rowsᵀ."""
    import torch

    wide = rows.double()
    values, vectors = torch.linalg.eigh(wide @ wide.T)
    values, vectors = values.flip(0), vectors.flip(1)
    real = _real(values.float())
    directions = (vectors[:, :real].T @ wide) / values[:real].sqrt()[:, None]
    return directions.float().contiguous(), values[:real].float().contiguous()


def _real(values: torch.Tensor) -> int:
    """How many eigenvalues, the largest first, are more than rounding."""
    return int((values > _NOTHING * values[0].clamp(min=0)).sum())


def input_moments(
    model: torch.nn.Module, sequences: Sequence[Sequence[int]], report: Progress
) -> tuple[dict[str, InputMoment], dict[str, str], int]:
    """The mean of xxᵀ/‖x‖² over all tokens, for every linear layer.

    Each input is scaled to length 1, so that every token has the same weight: the inputs of the first token of a text may be
    a hundred times as large as all others. A head that is tied to the embedding goes by the name of the embedding.

    Returns:
        The means by the name of the weight; for each weight that shares its input with another, the name of
        that other; and the number of tokens.
    """
    import torch

    by_length: dict[int, list[Sequence[int]]] = {}
    for sequence in sequences:
        by_length.setdefault(len(sequence), []).append(sequence)
    passes = [
        group[start : start + _AT_ONCE]
        for _, group in sorted(by_length.items())
        for start in range(0, len(group), _AT_ONCE)
    ]
    sums: dict[str, InputMoment] = {}
    same: dict[str, str] = {}
    with torch.inference_mode(), _watching(model, sums, same):
        for done, group in enumerate(passes, start=1):
            model(torch.tensor(group))
            report("reading activations", done / len(passes))
    count = sum(map(len, sequences))
    for moment in sums.values():
        moment.tokens = count
    return sums, same, count


@contextmanager
def _watching(model: torch.nn.Module, sums: dict[str, InputMoment], same: dict[str, str]) -> Iterator[None]:
    """While the model runs, add up xxᵀ/‖x‖² of the inputs of linear layers; of several with one input, only for the first."""
    import torch

    names = {id(parameter): name for name, parameter in model.named_parameters()}  # a tied weight has its first name
    layers = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear)]
    last: dict[str, Any] = {}

    def watch(layer: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        name = names[id(layer.weight)]
        if last.get("input") is given[0]:
            same[name] = last["name"]
            return
        last.update(input=given[0], name=name)
        inputs = given[0].reshape(-1, given[0].shape[-1]).float()
        directions = torch.nn.functional.normalize(inputs, dim=-1)
        sums.setdefault(name, InputMoment()).add(directions)

    handles = [layer.register_forward_pre_hook(watch) for layer in layers]
    try:
        yield
    finally:
        last.clear()
        for handle in handles:
            handle.remove()
