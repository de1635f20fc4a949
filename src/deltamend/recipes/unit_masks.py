"""The importance of units, attention heads and hidden neurons, and masks on the gradients of the weights that belong to them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from deltamend.errors import UsageError
from deltamend.recipes.gradients import evaluating
from deltamend.recipes.recipe import RunningRecipe, TrainingRun, Units

if TYPE_CHECKING:
    import torch

Masked = Literal["update", "gradient"]


def unit_importance(run: TrainingRun, units: Sequence[Units], dropout: float) -> dict[str, torch.Tensor]:
    """How much the model's outputs depend on each unit: from 0 to 1, (units,) float32 by the name of the reader.

    Every unit has a gate g = 1 that what it puts out is multiplied by. An old example runs twice, with other units dropped each time,
    and I is the mean over the examples of |∂KL/∂g| for the divergence of the two outputs. Within a block it is brought to mean 0 and
    variance 1, and then |tanh| of it is taken.

    Source: Ke et al. 2023, its importance of units; where the units are dropped is ours.

    Raises:
        UsageError: there are no units.
    """
    import torch

    if not units:
        raise UsageError(
            "the recipe knows no units of this model: its layers have other names than those of Llama, OPT and GPT-NeoX; take "
            "another recipe"
        )
    device = next(run.model.parameters()).device
    gates = {one.reader: torch.ones(one.count, device=device, requires_grad=True) for one in units}
    found = {reader: torch.zeros_like(gate) for reader, gate in gates.items()}
    examples = run.all_old
    generator = torch.Generator().manual_seed(run.seed)

    def dropped() -> dict[str, torch.Tensor]:
        kept = {one.reader: torch.rand(one.count, generator=generator) >= dropout for one in units}
        return {reader: gate * kept[reader].to(device) / (1 - dropout) for reader, gate in gates.items()}

    with evaluating(run.model):
        for example in examples:
            outputs = []
            for _ in range(2):
                with _gated(run.model, dropped()):
                    outputs.append(run.outputs(run.model, [example]).log_softmax(-1))
            divergence = torch.nn.functional.kl_div(outputs[0], outputs[1], log_target=True, reduction="batchmean")
            gradients = torch.autograd.grad(divergence, list(gates.values()), allow_unused=True)
            for reader, gradient in zip(gates, gradients, strict=True):
                if gradient is not None:
                    found[reader] += gradient.abs() / len(examples)
    return {reader: _normalised(one) for reader, one in found.items()}


def _normalised(importance: torch.Tensor) -> torch.Tensor:
    spread = importance.std(unbiased=False)
    centred = importance - importance.mean()
    return (centred / spread).tanh().abs() if float(spread) > 0 else importance * 0


@contextmanager
def _gated(model: torch.nn.Module, gates: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """While the block runs, what each unit puts out is multiplied by its gate."""
    modules = dict(model.named_modules())

    def hook(gate: torch.Tensor) -> object:
        def multiply(_module: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            factor = gate.repeat_interleave(given[0].shape[-1] // len(gate)).to(given[0].dtype)
            return (given[0] * factor, *given[1:])

        return multiply

    handles = [modules[reader].register_forward_pre_hook(hook(gate)) for reader, gate in gates.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def gradient_factors(
    parameters: Mapping[str, torch.nn.Parameter],
    units: Iterable[Units],
    importance: Mapping[str, torch.Tensor],
    strength: float,
) -> dict[str, torch.Tensor]:
    """1 − strength · I for every parameter that belongs to units, by name, in a shape that its gradient can be multiplied by.

    A key or value head that several query heads share is as important as the most important of them.
    """
    import torch

    factors: dict[str, torch.Tensor] = {}
    for one in units:
        scores = importance[one.reader]
        own = [(name, axis) for name, axis in one.weights if name in parameters]
        longest = max((parameters[name].shape[axis] for name, axis in own), default=0)
        for name, axis in own:
            parameter = parameters[name]
            length = parameter.shape[axis]
            shared = max(1, longest // length)
            each = scores.reshape(-1, shared).amax(1)
            shape = [1] * parameter.ndim
            shape[axis] = length
            factor = (1 - strength * each.repeat_interleave(length // len(each))).reshape(shape)
            factors[name] = torch.minimum(factors[name], factor) if name in factors else factor
    return factors


class MaskedRecipe(RunningRecipe):
    """Multiply updates, or gradients, by factors from 0 to 1.

    Args:
        run: the training.
        factors: by name of parameter; all others are left alone.
        masked: "update" for the change of the weights in each step, "gradient" for what the optimiser is given.
    """

    def __init__(self, run: TrainingRun, factors: Mapping[str, torch.Tensor], masked: Masked) -> None:
        parameters = run.trained()
        self._masked = masked
        self._pairs = [(parameters[name], factor) for name, factor in factors.items()]
        self._before: list[torch.Tensor] = []

    def before_step(self, step: int) -> None:  # noqa: ARG002 - the same in every step
        """Remember the weights."""
        if self._masked == "update":
            self._before = [one.detach().clone() for one, _ in self._pairs]

    def after_backward(self, step: int) -> None:  # noqa: ARG002 - the same in every step
        """Multiply the gradients."""
        if self._masked == "gradient":
            for one, factor in self._pairs:
                if one.grad is not None:
                    one.grad.mul_(factor.to(one.grad.dtype))

    def after_step(self, step: int) -> None:  # noqa: ARG002 - the same in every step
        """Multiply the updates."""
        for (one, factor), before in zip(self._pairs, self._before, strict=self._masked == "update"):
            one.data.copy_(before + factor.to(one.dtype) * (one.data - before))

    def held(self) -> Sequence[torch.Tensor]:
        """The factors, and the weights before the step."""
        return [*(factor for _, factor in self._pairs), *self._before]
