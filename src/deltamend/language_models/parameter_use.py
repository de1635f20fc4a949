"""How the code of a module uses one of its parameters: as a factor of a matrix product, as a kernel, as a table, or otherwise.

Layers of torch say what their parameters are by their class. Many models hold parameters in modules of their own, such as the
experts of a mixture or the state of a Mamba layer, and there only the module's code tells a matrix from a table of numbers of
the same shape. The code is read here and never run.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from functools import lru_cache
from typing import Literal, NamedTuple


class Use(NamedTuple):
    """How a parameter is used.

    Attributes:
        kind: "product" for a factor of a matrix product, "convolution" for a kernel, "table" for rows that are looked up, and
            "elementwise" for numbers that are added, multiplied or passed through a function one by one.
        transposed: of a product: whether it is stored as (inputs, outputs).
    """

    kind: Literal["product", "convolution", "table", "elementwise"]
    transposed: bool = False


_SETTING_UP = frozenset({"__init__", "_init_weights", "reset_parameters", "extra_repr", "__repr__"})
_PRODUCTS = frozenset({"matmul", "bmm", "mm", "grouped_mm", "_grouped_mm"})
_PRODUCTS_AFTER_A_SUM = frozenset({"addmm", "baddbmm"})
_CONVOLUTIONS = frozenset({"conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "causal_conv1d_fn"})
_TRANSPOSING = frozenset({"t", "transpose", "swapaxes", "permute"})
# What gives the same numbers in another shape, order or dtype.
_VIEWS = frozenset({
    "view", "reshape", "to", "type", "type_as", "float", "bfloat16", "squeeze", "unsqueeze", "contiguous", "chunk", "split",
    "unbind", "flatten", "expand", "clone", "detach", "index_select", "data",
}) | _TRANSPOSING  # fmt: skip


@lru_cache(maxsize=4096)
def use_of(module: type, parameter: str) -> Use | None:
    """How the methods of a module use `self.PARAMETER`; None where its code cannot be read, or does not say.

    Args:
        module: the class of the module.
        parameter: the name of the parameter in the module.

    Source: ours.
    """
    found: list[Use] = []
    for method in _methods(module):
        found += _Method(method, parameter).uses()
    for kind in ("product", "convolution", "table", "elementwise"):
        same = [use for use in found if use.kind == kind]
        if same:
            return same[0]
    return None


def _methods(module: type) -> Iterator[ast.FunctionDef]:
    """The methods of a class and of the classes it is made from, up to those of torch; those that set it up are left out."""
    for origin in module.__mro__:
        if origin is object or origin.__module__.startswith("torch.") or origin.__name__ == "PreTrainedModel":
            continue
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(origin)))
        except (OSError, TypeError, SyntaxError):  # made at run time, or compiled
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.name not in _SETTING_UP:
                yield node


class _Method:
    """One method, and its local variables that hold the parameter: each with whether it was transposed."""

    def __init__(self, method: ast.FunctionDef, parameter: str) -> None:
        self._nodes = list(ast.walk(method))
        self._parameter = parameter
        self._locals: dict[str, bool] = {}
        known = -1
        while known < len(self._locals):  # a variable may hold another
            known = len(self._locals)
            self._find_locals()

    def uses(self) -> list[Use]:
        """Every use that can be told, in the order of the code."""
        return [use for node in self._nodes for use in self._uses_in(node)]

    def _find_locals(self) -> None:
        for node in self._nodes:
            if not isinstance(node, ast.Assign):
                continue
            held = self._held(node.value)
            if held is None:
                continue
            for target in node.targets:
                for name in target.elts if isinstance(target, ast.Tuple) else [target]:
                    if isinstance(name, ast.Name):
                        self._locals.setdefault(name.id, held)

    def _held(self, node: ast.expr) -> bool | None:
        """Whether what an expression holds is the parameter transposed; None where it is not the parameter."""
        match node:
            case ast.Attribute(value=ast.Name(id="self"), attr=self._parameter):
                return False
            case ast.Name(id=name):
                return self._locals.get(name)
            case ast.Subscript(value=value):
                return self._held(value)
            case ast.Attribute(value=value, attr="T" | "mT"):
                held = self._held(value)
                return None if held is None else not held
            case ast.Attribute(value=value, attr="data"):
                return self._held(value)
            case ast.Call(func=ast.Attribute(value=value, attr=name)) if name in _VIEWS:
                held = self._held(value)
                return None if held is None else held != (name in _TRANSPOSING)
            case ast.IfExp(body=body, orelse=other):
                held = self._held(body)
                return self._held(other) if held is None else held
            case _:
                return None

    def _uses_in(self, node: ast.AST) -> Iterator[Use]:
        match node:
            case ast.BinOp(left=left, op=ast.MatMult(), right=right):
                yield from self._product(left, right)
            case ast.BinOp(left=left, right=right):
                if self._held(left) is not None or self._held(right) is not None:
                    yield Use("elementwise")
            case ast.UnaryOp(operand=operand) if self._held(operand) is not None:
                yield Use("elementwise")
            case ast.Call(func=function, args=arguments, keywords=keywords):
                yield from self._uses_in_call(function, [*arguments, *(keyword.value for keyword in keywords)])

    def _uses_in_call(self, function: ast.expr, arguments: list[ast.expr]) -> Iterator[Use]:
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        held = [turned for argument in arguments if (turned := self._held(argument)) is not None]
        if name in _PRODUCTS | _PRODUCTS_AFTER_A_SUM:
            factors = arguments[1:] if name in _PRODUCTS_AFTER_A_SUM else arguments
            if isinstance(function, ast.Attribute) and (len(factors) == 1 or self._held(function.value) is not None):
                factors = [function.value, *factors]  # x.matmul(W), or W.matmul(x)
            if len(factors) > 1:
                yield from self._product(factors[0], factors[1])
        elif name == "linear" and len(arguments) > 1:
            turned = self._held(arguments[1])
            if turned is not None:
                yield Use("product", turned)
        elif held and name == "einsum":
            yield Use("product")
        elif held and name in _CONVOLUTIONS:
            yield Use("convolution")
        elif held and name == "embedding":
            yield Use("table")
        elif held and isinstance(function, ast.Attribute) and getattr(function.value, "id", "") == "torch":
            yield Use("elementwise")

    def _product(self, left: ast.expr, right: ast.expr) -> Iterator[Use]:
        """The use as a factor of left @ right: W @ x has W stored as (outputs, inputs), and x @ W as (inputs, outputs)."""
        on_the_left, on_the_right = self._held(left), self._held(right)
        if on_the_left is not None:
            yield Use("product", on_the_left)
        elif on_the_right is not None:
            yield Use("product", not on_the_right)
