from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import EntryPoint
from typing import ClassVar

import pytest
import torch

import deltamend
from deltamend.methods import registry, single_methods
from deltamend.methods.method import KeptDelta, Method, TensorContext
from deltamend.spectrum.blocks import Block, Blocks, FloatArray


class Halve(Method):
    """A toy method, the one docs/methods/adding-a-method.md shows."""

    name: ClassVar[str] = "halve"
    source: ClassVar[str] = "a toy"
    summary: ClassVar[str] = "Keep half of every delta."

    def apply(self, delta: Blocks, context: TensorContext) -> KeptDelta:  # noqa: ARG002 - the same for every tensor
        """Halve one delta."""

        def half(block: Block) -> FloatArray:
            block.values[:] /= 2.0
            return block.values

        return KeptDelta("filtered", "", half)


class Impostor(Halve):
    """A method that takes another's alias."""

    name: ClassVar[str] = "dare_linear"


@pytest.fixture
def offered(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names in this module that a package offers as entry points."""
    names: list[str] = []

    def points(group: str) -> list[EntryPoint]:
        return [EntryPoint(name.lower(), f"{__name__}:{name}", group) for name in names]

    monkeypatch.setattr(single_methods, "entry_points", points)
    single_methods.offered_by_packages.cache_clear()
    yield names
    monkeypatch.undo()
    single_methods.offered_by_packages.cache_clear()


def test_a_method_of_another_package_takes_one_file_and_one_line(offered: list[str]) -> None:
    offered.append("Halve")
    base, finetuned = {"a.weight": torch.ones(3, 4)}, {"a.weight": torch.full((3, 4), 2.0)}
    out = deltamend.repair_state_dict(base, finetuned, method="halve")
    assert torch.equal(out.tensors["a.weight"], torch.full((3, 4), 1.5))
    assert list(registry.all_methods())[-1] == "halve"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Impostor", r"'dare_linear' is taken by deltamend.methods.dare.Dare and by .*Impostor"),
        ("NAME", "is no deltamend method"),
    ],
)
def test_collisions_and_strangers_are_refused(name: str, message: str, offered: list[str]) -> None:
    offered.append(name)
    with pytest.raises(deltamend.MethodError, match=message):
        registry.all_methods()


NAME = "not a method"


def test_names_may_be_written_as_mergekit_does() -> None:
    assert deltamend.get_method("task_arithmetic", {"lambda": "0.5"}).described() == "task-arithmetic weight=0.5"
    assert deltamend.get_method("dare_linear").name == "dare"
    assert deltamend.get_method("passthrough").name == "none"


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("tise", {}, "no method 'tise'; did you mean 'ties'?"),
        ("zzz", {}, "no method 'zzz'; there are breadcrumbs, dare, "),
        ("ties", {"densty": 0.1}, "'ties', parameter 'densty': .*its parameters are: weight, density, scope"),
        ("ties", {"density": 1.5}, "'ties', parameter 'density': Input should be less than or equal to 1"),
        ("ties", {"weight": 1, "lambda": 1}, "'ties': weight and lambda are two names of one factor"),
        ("breadcrumbs", {"density": 0.8, "gamma": 0.4}, "density and gamma sum to 1.2"),
        ("della", {"density": 0.95}, "lower epsilon"),
        ("rank", {"rank": 3, "energy": 0.4}, "exclude each other; give one of them"),
        ("dg-hard", {"noise": "known"}, "noise=known needs noise_level, and noise_level needs noise=known"),
        ("dg-hard", {"noise": "screenot", "rule": "edge"}, "is a threshold of its own"),
        ("graft", {"mask": "absent"}, "parameter 'mask': Path does not point to a file"),
        ("fisher", {}, "'fisher', parameter 'fisher': is missing"),
        ("task-arithmetic", {"weight": "nan"}, "parameter 'weight'"),
        (
            "task-arithmetic",
            {},
            r"parameter 'weight': is missing; give for example parameters=\{\"weight\": 0.5\}; it is: Factor",
        ),
    ],
)
def test_wrong_names_and_parameters_say_what_is_right(name: str, parameters: dict[str, object], message: str) -> None:
    with pytest.raises(deltamend.MethodError, match=message):
        deltamend.get_method(name, parameters)
