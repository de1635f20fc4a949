"""What each tensor of a checkpoint is to its model: which module owns it, under which name, and whether it is a matrix.

Names and shapes settle most tensors: `weight` of two dimensions is the matrix of a linear map or an embedding, and what has one
dimension is no matrix. Where they do not, such as with three dimensions, the model is built by transformers without weights, and
the module that owns the tensor decides. Where transformers does not know the model, the rules of `role_by_name` do.
"""

from __future__ import annotations

import importlib.util
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from deltamend.checkpoint.architecture import INPUT_EMBEDDING, is_expert, leaf_of, model_type_of, module_of
from deltamend.checkpoint.json_file import read_json
from deltamend.errors import DeltamendError
from deltamend.machine.atomic import whole_file
from deltamend.machine.cache import default_cache_dir
from deltamend.machine.digests import json_sha256

if TYPE_CHECKING:
    import torch

Role = Literal["matrix", "stack", "convolution", "depthwise", "embedding", "bias", "norm", "other"]
"""What a parameter is.

"matrix" is that of a linear map, and "stack" holds several of them, such as one for each expert. "depthwise" is the kernel of a
convolution whose channels do not mix, so that each row is a filter of its own.
"""

Layer = Literal["linear", "conv1d", "embedding", ""]
Shapes = Mapping[str, tuple[int, ...]]
_MATRICES: frozenset[Role] = frozenset({"matrix", "stack", "convolution", "embedding"})
_CODE = (
    "deltamend.inputs.model_layout",
    "deltamend.language_models.empty_model",
    "deltamend.language_models.parameter_use",
)
"""The modules that an answer depends on; an answer in the cache is one of the same code."""
_STATE = frozenset({"A_log", "A", "D", "dt_bias", "time_decay", "time_first", "time_faaaa"})
"""Parameters of state-space and linear-attention layers that act entry by entry."""
_BIAS = re.compile(r"(^|_)bias(es)?(_|$)")
_NORM = re.compile(r"norm|^ln(_|\d|$)", re.IGNORECASE)
_CONVOLUTION = re.compile(r"conv|patch_emb", re.IGNORECASE)
_CAUSAL_CONVOLUTION = re.compile(r"conv_?1d")
"""What state-space and linear-attention layers call their convolution over time, which is depthwise."""
_TABLE = re.compile(r"embed|position|token|latents|^w[tp]e$", re.IGNORECASE)


@dataclass(frozen=True)
class Parameter:
    """What one stored tensor is to its model.

    Attributes:
        role: see `Role`.
        module_name: its name in memory, as transformers and PEFT know it.
        owner: the class of the module that it belongs to; "" where only its name was looked at.
        transposed: whether its matrices are stored as (inputs, outputs).
        count: how many matrices of equally many rows lie on top of each other in it, such as one for each expert.
        converted: whether loading stacks, cuts or permutes it, so that it is no parameter of the model by itself.
        layer: the kind of layer that the module is, where PEFT knows it: "linear", "conv1d" (transformers' linear map of
            GPT-2) or "embedding"; otherwise "".
        place: of the parameter among those that its module holds itself, in the order in which PEFT adapts them.
        experts_transposed: whether its module says, in `is_transposed`, that its experts are (experts, inputs, outputs). PEFT
            goes by that, whatever the module's code does.
        aliases: its other names in memory, where no tensor is stored, such as that of a head which is tied to the embedding.
    """

    role: Role
    module_name: str
    owner: str = ""
    transposed: bool = False
    count: int = 1
    converted: bool = False
    layer: Layer = ""
    place: int = 0
    experts_transposed: bool = False
    aliases: tuple[str, ...] = ()

    @property
    def is_matrix(self) -> bool:
        """Whether it is a matrix or holds some."""
        return self.role in _MATRICES


Parameters = Mapping[str, Parameter]
"""What each tensor of a checkpoint is, by its stored name."""


def matrix_view(parameter: Parameter, shape: Sequence[int]) -> tuple[int, int] | None:
    """(rows, columns) a tensor is read as, or None where it is no matrix.

    Stacked matrices lie on top of each other. The kernel of a convolution is a matrix over its output channels. What would have
    a single row or column is no matrix, unless it is stored as one.
    """
    if not parameter.is_matrix or len(shape) < 2:
        return None
    if len(shape) == 2:
        return shape[0], shape[1]
    if parameter.role == "stack":
        view = math.prod(shape[:-1]), shape[-1]
        return view if view[1] > 1 and view[0] > parameter.count else None
    view = shape[0], math.prod(shape[1:])
    return view if min(view) > 1 else None


def layout_by_names(shapes: Shapes) -> dict[str, Parameter]:
    """What every tensor is by its name and shape alone; see `role_by_name`. The names in memory are taken to be the same."""
    return {name: parameter_by_name(name, shape) for name, shape in shapes.items()}


def parameter_by_name(name: str, shape: Sequence[int]) -> Parameter:
    """What a tensor is by its name and shape alone."""
    role = role_by_name(name, shape)
    return Parameter(role, name, count=math.prod(shape[:-2]) if role == "stack" else 1)


def role_by_name(name: str, shape: Sequence[int]) -> Role:
    """What a tensor is by its name and shape alone. The first rule that fits decides.

    1. A name that ends in a bias, or a module called a norm: "bias" or "norm", of however many dimensions.
    2. Fewer than two dimensions, or the state of a state-space layer (`A_log`, `D`, …): "other".
    3. Two dimensions: "embedding" by its module's name, otherwise "matrix".
    4. A kernel of one input channel, (out, 1, …): "depthwise". A single (1, …): "other", such as a table of positions.
    5. More than three dimensions, or a module called a convolution: "convolution".
    6. Three dimensions: "stack".
    """
    leaf, module = leaf_of(name), leaf_of(module_of(name))
    if _BIAS.search(leaf):
        return "bias"
    if _NORM.search(module):
        return "norm"
    if len(shape) < 2 or leaf in _STATE:
        return "other"
    if len(shape) == 2:
        return "embedding" if INPUT_EMBEDDING.search(name) or _TABLE.search(module) else "matrix"
    if shape[0] == 1:
        return "other"
    if len(shape) > 3 or _CONVOLUTION.search(module) or _CONVOLUTION.search(leaf):
        return "depthwise" if shape[1] == 1 else "convolution"
    return "depthwise" if shape[1] == 1 and not is_expert(name) else "stack"


def needs_the_model(name: str, shape: Sequence[int]) -> bool:
    """Whether only the module that owns a tensor tells what it is, as its name and shape do not."""
    role = role_by_name(name, shape)
    if len(shape) < 2 or role in {"bias", "norm"} or leaf_of(name) in _STATE:
        return False
    if len(shape) == 2:
        return leaf_of(name) != "weight"
    if role == "depthwise":
        return not _CAUSAL_CONVOLUTION.search(leaf_of(module_of(name)))
    return not (role == "convolution" or (role == "stack" and is_expert(name)))


def layout_of(config: Mapping[str, Any], shapes: Shapes, *, names_in_memory: bool = False) -> dict[str, Parameter]:
    """What each tensor of a checkpoint is to its model.

    transformers is asked only where names and shapes do not settle it, and its answer is kept in the user's cache by the digest
    of config.json, the names and shapes, the version of transformers and the code that asks it.

    Args:
        config: the content of config.json.
        shapes: of the tensors, by their stored names.
        names_in_memory: whether `module_name` is needed, so that transformers is asked in any case.

    Returns:
        By the stored name. Tensors that belong to no parameter of the model, and all of them where transformers does not know
        the model or is not installed, are what their names say.
    """
    plain = layout_by_names(shapes)
    asked = names_in_memory or any(needs_the_model(name, shape) for name, shape in shapes.items())
    if not asked or not model_type_of(config) or importlib.util.find_spec("transformers") is None:
        return plain
    file = _cache_file(config, shapes)
    found = _read_cache(file)
    if found is None:
        found = _ask_transformers(config, shapes)
        _write_cache(file, found)
    return plain | {name: parameter for name, parameter in found.items() if name in shapes}


def layout_of_module(model: torch.nn.Module, shapes: Shapes | None = None) -> dict[str, Parameter]:
    """What each tensor is to a model that is there.

    Args:
        model: any module of torch; its weights are not read.
        shapes: of tensors by the names that a checkpoint of it has; None for the model's own state dict.

    Returns:
        By the name in `shapes`; without those that belong to nothing in the model.
    """
    from deltamend.language_models.empty_model import NameInMemory, names_in_memory

    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    owners = dict(model.named_modules(remove_duplicate=False))
    if shapes is None:
        shapes, names = own, {name: NameInMemory(name, converted=False) for name in own}
    else:
        names = names_in_memory(model, shapes)
    layers = _layers(owners)
    aliases = _aliases(model, {name for name, _ in names.values()})
    return {
        stored: replace(
            _parameter_of(owners[module], layers[module], name, own[name], shapes[stored], converted),
            aliases=aliases.get(name, ()),
        )
        for stored, (name, converted) in names.items()
        if (module := module_of(name)) in owners
    }


def _aliases(model: torch.nn.Module, stored: set[str]) -> dict[str, tuple[str, ...]]:
    """The other names of each parameter that stands in several places, without those of tensors that are stored."""
    places: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        places.setdefault(id(parameter), []).append(name)
    found: dict[str, tuple[str, ...]] = {}
    for names in places.values():
        others = tuple(name for name in names if name not in stored)
        found |= {name: others for name in names if name in stored and others}
    return found


def _layers(modules: Mapping[str, torch.nn.Module]) -> dict[str, Layer]:
    """The kind of layer that each module is to PEFT, by its name."""
    import torch

    found: dict[str, Layer] = {}
    for name, module in modules.items():
        found[name] = ""
        if isinstance(module, torch.nn.Embedding):
            found[name] = "embedding"
        elif isinstance(modules.get(module_of(name)), torch.nn.MultiheadAttention):
            pass  # it reads the weight of its layer itself, past anything that was added to the layer
        elif isinstance(module, torch.nn.Linear):
            found[name] = "linear"
        elif type(module).__name__ == "Conv1D":
            found[name] = "conv1d"
    return found


def _parameter_of(
    owner: torch.nn.Module, layer: Layer, name: str, own: tuple[int, ...], stored: tuple[int, ...], converted: bool
) -> Parameter:
    role, transposed = _role_in(owner, leaf_of(name), own)
    groups = getattr(owner, "groups", 1) if role == "convolution" else 1
    if converted and role == "stack" and len(stored) == 2:  # one of the matrices that are stacked on loading
        role = "matrix"
    count = math.prod(stored[:-2]) if role == "stack" else groups
    own_matrix = role == "matrix" and len(stored) == 2 and not layer and not converted
    if own_matrix and (experts := _experts_below_each_other(owner, stored)):
        role, count = "stack", experts
    kind: Layer = layer if leaf_of(name) == "weight" and not converted else ""
    held = [*owner._parameters]
    return Parameter(
        role,
        name,
        type(owner).__name__,
        transposed and not converted,
        count,
        converted,
        kind,
        held.index(leaf_of(name)) if leaf_of(name) in held else 0,
        bool(getattr(owner, "is_transposed", False)),
    )


def _experts_below_each_other(owner: torch.nn.Module, shape: tuple[int, ...]) -> int:
    """How many experts' matrices of equally many rows lie in a tensor of two dimensions, as in DBRX; 0 where it is one matrix."""
    sizes = (getattr(owner, name, None) for name in ("num_experts", "moe_num_experts", "num_local_experts"))
    count = next((size for size in sizes if isinstance(size, int)), 0)
    # A router has a row for each expert.
    return count if count > 1 and shape[0] > count and shape[0] % count == 0 else 0


def _role_in(owner: torch.nn.Module, leaf: str, shape: tuple[int, ...]) -> tuple[Role, bool]:
    """The role of a parameter of a module, and whether its matrices are stored as (inputs, outputs)."""
    import torch

    from deltamend.language_models.parameter_use import use_of

    kind: type = type(owner)
    by_name = role_by_name(f"{kind.__name__}.{leaf}" if leaf != "weight" else f"module.{leaf}", shape)
    if len(shape) < 2 or by_name == "bias":
        return ("norm" if _NORM.search(kind.__name__) and by_name != "bias" else by_name), False
    if isinstance(owner, torch.nn.Embedding):
        return "embedding", False
    if isinstance(owner, torch.nn.modules.conv._ConvNd):
        return ("depthwise" if owner.groups > 1 and shape[1] == 1 else "convolution"), False
    if isinstance(owner, torch.nn.Linear):
        return ("matrix" if len(shape) == 2 else "stack"), False
    if _NORM.search(kind.__name__):
        return "norm", False
    if kind.__name__ == "Conv1D":  # transformers' linear map of GPT-2
        return "matrix", True
    use = use_of(kind, leaf)
    if use is None:
        return by_name, False
    if use.kind == "product":
        return ("matrix" if len(shape) == 2 else "stack"), use.transposed
    if use.kind == "convolution":
        return ("depthwise" if shape[1] == 1 else "convolution"), False
    if use.kind == "table" or (len(shape) == 2 and _TABLE.search(leaf)):
        return "embedding", False
    return "other", False


def _ask_transformers(config: Mapping[str, Any], shapes: Shapes) -> dict[str, Parameter]:
    """The layout by transformers; empty where it cannot tell."""
    from deltamend.language_models.empty_model import build_empty

    try:
        return layout_of_module(build_empty(config), shapes)
    except DeltamendError:
        return {}


def _cache_file(config: Mapping[str, Any], shapes: Shapes) -> Path:
    key = {
        "code": [_source(module) for module in _CODE],
        "transformers": version("transformers"),
        "config": dict(config),
        "shapes": {name: list(shape) for name, shape in shapes.items()},
    }
    return default_cache_dir() / "layouts" / f"{json_sha256(key)[:32]}.json"


def _source(module: str) -> str | None:
    found = importlib.util.find_spec(module)
    return None if found is None or found.origin is None else Path(found.origin).read_text(encoding="utf-8")


def _read_cache(file: Path) -> dict[str, Parameter] | None:
    """What an earlier run found; None where there is nothing that can be read, or it was damaged since."""
    try:
        kept = read_json(file)
        found = kept["parameters"]
        if kept["sha256"] != json_sha256(found):
            return None
        return {name: Parameter(**{**fields, "aliases": tuple(fields["aliases"])}) for name, fields in found.items()}
    except (DeltamendError, KeyError, TypeError, AttributeError):
        return None


def _write_cache(file: Path, found: Mapping[str, Parameter]) -> None:
    """Keep what was found; a cache that cannot be written only costs time."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(file) as temporary:
            parameters = {name: asdict(parameter) for name, parameter in found.items()}
            temporary.write_text(json.dumps({"parameters": parameters, "sha256": json_sha256(parameters)}))
    except (OSError, DeltamendError):
        return
