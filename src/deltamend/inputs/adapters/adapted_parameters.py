"""Which of a model's tensors an adapter's factors belong to, and how the factors lie against them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from deltamend.checkpoint.architecture import has_conv1d, is_conv1d, leaf_of, module_of
from deltamend.checkpoint.checkpoint_folder import StoredTensor
from deltamend.checkpoint.dtypes import FLOAT_NAMES
from deltamend.errors import CheckpointError
from deltamend.inputs.model_layout import Parameter, Parameters, layout_of

BASE_LAYER = ".base_layer"
"""What PEFT appends to a module of which it adapts several parameters; once for each that was adapted after this one."""

# A fused expert weight, and the weights that make it up where each expert is stored by itself.
_SINGLE = {"gate_up_proj": (("gate_proj", "up_proj"), ("w1", "w3")), "down_proj": (("down_proj",), ("w2",))}
_ONE_EXPERT = re.compile(r"(?P<number>\d{1,9})\.(?P<part>w[123]|gate_proj|up_proj|down_proj)\.weight")


@dataclass(frozen=True)
class Target:
    """A tensor of the model, and how the factors of its update lie.

    Attributes:
        weight: the tensor.
        shape: how it is read: (count, rows, columns), where count is 1 for all but a stack of matrices.
        named: the name that patterns of the adapter's config are held against.
        swapped, experts, expert, outputs, blocks: see `LowRankUpdate`.
        is_plain: whether it is the weight of a linear layer, an embedding or a convolution.
        times: how often the update is added: twice to the output layer inside torch's MultiheadAttention, in PEFT's merge and
            in the model that it trains alike, because there both modules add it.
    """

    weight: StoredTensor
    shape: tuple[int, int, int]
    named: str
    swapped: bool = False
    experts: int = 1
    expert: int | None = None
    outputs: tuple[int, int] | None = None
    blocks: tuple[int, int] = (1, 1)
    is_plain: bool = True
    times: int = 1


class AdaptedParameters:
    """The tensors of a model, and the config of an adapter for it."""

    def __init__(
        self, tensors: Mapping[str, StoredTensor], model: Mapping[str, Any], adapter: Mapping[str, Any], fault: str
    ) -> None:
        self._tensors, self._model, self._adapter, self._fault = tensors, model, adapter, fault
        self._layout: Parameters | None = None
        self._of_module: dict[str, list[str]] = {}
        for name in tensors:
            self._of_module.setdefault(module_of(name), []).append(name)

    def targets(self, key: str, a: StoredTensor, b: StoredTensor, *, embedding: bool) -> list[Target]:
        """The tensors that one pair of factors belongs to: one, or one for each expert that is stored by itself.

        Args:
            key: the name the factors are stored under, `model.layers.0.mlp.experts.base_layer` for one.
            a: A.
            b: B.
            embedding: whether they belong to an embedding, which they are stored transposed for.

        Raises:
            CheckpointError: the model has no tensor that they fit.
        """
        fault = f"{self._fault}: module {key!r}"
        module, depth = key, 0
        while module.endswith(BASE_LAYER):
            module, depth = module.removesuffix(BASE_LAYER), depth + 1
        times = 2 if module.endswith(f"{BASE_LAYER}.out_proj") else 1
        module = module.replace(f"{BASE_LAYER}.", ".")
        if len(a.shape) != len(b.shape) or len(a.shape) < 2 or not {a.dtype, b.dtype} <= FLOAT_NAMES:
            raise CheckpointError(f"{fault} has factors that are no matrices; save the adapter again")
        plain = self._tensors.get(f"{module}.weight")
        if depth == 0 and plain is not None:
            found = self._plain(plain, module, a, b, embedding=embedding)
            targets = [] if found is None else [found]
        else:
            targets = self._parameter(module, depth, a, b) or list(self._single_experts(module, a, b))
        if not targets:
            raise CheckpointError(f"{fault} does not fit the model; give the model it was trained on")
        return [replace(target, times=times) for target in targets]

    def _plain(
        self, weight: StoredTensor, module: str, a: StoredTensor, b: StoredTensor, *, embedding: bool
    ) -> Target | None:
        """The weight of a layer."""
        if weight.dtype not in FLOAT_NAMES:
            return None
        if len(a.shape) > 2:  # a convolution; grouped ones have no B of this shape, and PEFT does not merge them
            fits = (
                b.shape == (weight.shape[0], a.shape[0], *[1] * (len(a.shape) - 2)) and a.shape[1:] == weight.shape[1:]
            )
            return Target(weight, (1, weight.shape[0], math.prod(weight.shape[1:])), module) if fits else None
        if len(weight.shape) == 3:
            return self._stacked(weight, module, a, b)
        if len(weight.shape) != 2:
            return None
        ways = [swapped for swapped in (False, True) if self._blocks(weight.shape, a, b, swapped=swapped) is not None]
        wanted = embedding or (ways[0] if len(ways) == 1 else self._is_conv1d(weight))
        blocks = self._blocks(weight.shape, a, b, swapped=wanted)
        return None if blocks is None else Target(weight, (1, *weight.shape), module, swapped=wanted, blocks=blocks)

    def _blocks(
        self, shape: tuple[int, ...], a: StoredTensor, b: StoredTensor, *, swapped: bool
    ) -> tuple[int, int] | None:
        """How many blocks A and B consist of, where they fit a matrix; None where they do not."""
        outputs, inputs = shape[::-1] if swapped else shape
        scheme = self._adapter.get("use_bdlora")
        count = scheme.get("nblocks") if isinstance(scheme, dict) else None
        for blocks in ((1, 1), *([(count, 1), (1, count)] if isinstance(count, int) and count > 1 else [])):
            divisible = a.shape[0] % blocks[0] == 0 and b.shape[0] % blocks[1] == 0
            if divisible and (outputs, a.shape[0], inputs) == (
                b.shape[0],
                b.shape[1] * blocks[1],
                a.shape[1] * blocks[0],
            ):
                return blocks
        return None

    def _stacked(self, weight: StoredTensor, named: str, a: StoredTensor, b: StoredTensor) -> Target | None:
        """A stack of matrices in one tensor, (experts, outputs, inputs) or (experts, inputs, outputs)."""
        count, rows, columns = weight.shape
        sides = (b.shape[0], a.shape[1])
        ways = [swapped for swapped in (False, True) if sides == ((columns, rows) if swapped else (rows, columns))]
        if not ways or not _same_rank(a, b, count):
            return None
        swapped = (
            ways[0] if len(ways) == 1 else self._known(weight, "which way its square matrices lie").experts_transposed
        )
        return Target(weight, (count, rows, columns), named, swapped=swapped, experts=count, is_plain=False)

    def _parameter(self, module: str, depth: int, a: StoredTensor, b: StoredTensor) -> list[Target]:
        """A parameter that is no layer's `weight`, such as the experts of a layer in one tensor."""
        fitting = []
        for tensor in map(self._tensors.__getitem__, self._of_module.get(module, [])):
            if tensor.dtype not in FLOAT_NAMES:
                continue
            if len(tensor.shape) == 3 and (stack := self._stacked(tensor, tensor.name, a, b)) is not None:
                fitting.append(stack)
            elif len(tensor.shape) == 2 and (b.shape[0], a.shape[1]) == tensor.shape and _same_rank(a, b, 1):
                fitting.append(Target(tensor, (1, *tensor.shape), tensor.name, is_plain=False))
        named = self._adapter.get("target_parameters")
        if isinstance(named, list) and named:
            keys = tuple(f".{key}" for key in named)
            fitting = [target for target in fitting if f".{target.weight.name}".endswith(keys)]
        if len(fitting) > 1:
            leaves = " and ".join(leaf_of(target.weight.name) for target in fitting)
            # The parameter that was adapted first lies innermost, deepest below `base_layer`.
            places = {
                target.weight.name: self._known(target.weight, f"whether these or others of {leaves} are meant").place
                for target in fitting
            }
            fitting.sort(key=lambda target: -places[target.weight.name])
            fitting = fitting[min(depth, len(fitting) - 1) :][:1]
        return fitting

    def _is_conv1d(self, weight: StoredTensor) -> bool:
        """Whether a square weight is that of a Conv1D, stored as (inputs, outputs).

        PEFT writes in `fan_in_fan_out` what the last adapted module was, so that only some models need to be asked.
        """
        if not self._adapter.get("fan_in_fan_out") and not has_conv1d(self._model):
            return False
        found = self._in_model(weight)
        if found is not None:
            return found.layer == "conv1d"
        if has_conv1d(self._model):
            return is_conv1d(self._model, leaf_of(module_of(weight.name)))
        return bool(self._adapter.get("fan_in_fan_out"))

    def _known(self, weight: StoredTensor, question: str) -> Parameter:
        """What transformers says of a parameter of a module.

        Raises:
            CheckpointError: transformers does not know the model, so that the question stays open.
        """
        found = self._in_model(weight)
        if found is None:
            raise CheckpointError(
                f"{self._fault}: factors fit {weight.name!r}, and transformers does not know the model, so that nothing tells "
                f"{question}; merge the adapter with PEFT's merge_and_unload and give the result"
            )
        return found

    def _in_model(self, weight: StoredTensor) -> Parameter | None:
        """What transformers says of a tensor; None where it does not know it."""
        if self._layout is None:
            shapes = {name: tensor.shape for name, tensor in self._tensors.items()}
            self._layout = layout_of(self._model, shapes, names_in_memory=True)
        found = self._layout.get(weight.name)
        return found if found is not None and found.owner else None

    def _single_experts(self, module: str, a: StoredTensor, b: StoredTensor) -> Iterator[Target]:
        """The experts of a layer that are fused in the model and stored one by one in its files."""
        experts: dict[tuple[str, int], StoredTensor] = {}
        for name, tensor in self._tensors.items():
            found = _ONE_EXPERT.fullmatch(name[len(module) + 1 :]) if name.startswith(f"{module}.") else None
            if found is not None and len(tensor.shape) == 2 and tensor.dtype in FLOAT_NAMES:
                experts[found["part"], int(found["number"])] = tensor
        count = 1 + max((number for _, number in experts), default=-1)
        if count == 0 or not _same_rank(a, b, count):
            return
        for fused, namings in _SINGLE.items():
            for parts in namings:
                rows = b.shape[0] // len(parts)
                chosen = [
                    (number, place, weight)
                    for number in range(count)
                    for place, part in enumerate(parts)
                    if (weight := experts.get((part, number))) is not None and weight.shape == (rows, a.shape[1])
                ]
                if len(chosen) == count * len(parts):
                    for number, place, weight in chosen:
                        outputs = (place * rows, (place + 1) * rows)
                        shape = (1, rows, a.shape[1])
                        yield Target(
                            weight,
                            shape,
                            f"{module}.{fused}",
                            experts=count,
                            expert=number,
                            outputs=outputs,
                            is_plain=False,
                        )
                    return


def _same_rank(a: StoredTensor, b: StoredTensor, count: int) -> bool:
    return len(a.shape) == 2 and a.shape[0] == b.shape[1] and a.shape[0] % count == 0 and a.shape[0] > 0
