"""Options in the text of an error: spelled for Python by the library, for a shell by the command line."""

from __future__ import annotations

import pytest

from deltamend import errors
from deltamend.cli.options import spelled_on_command_line
from deltamend.errors import DeltamendError, option, spell, spelled_in_python


@pytest.mark.parametrize(
    ("name", "value", "python", "shell"),
    [
        ("out_dtype", "fp32", 'out_dtype="fp32"', "--out-dtype fp32"),
        ("out_dtype", None, "out_dtype", "--out-dtype"),
        ("workers", "1", "workers=1", "--workers 1"),
        ("split_fused", "True", "split_fused=True", "--split-fused"),
        ("output", "adapter", 'output="adapter"', "--as adapter"),
        ("parameters", None, "parameters", "--set"),
        ("rules", None, "rules", "rules"),  # there is no flag for rules
        ("rename", "OLD=NEW", 'rename="OLD=NEW"', "--rename OLD=NEW"),
        ("strengths", None, "strengths", "--strengths"),
    ],
)
def test_an_option_is_spelled_for_python_and_for_the_command_line(
    name: str, value: str | None, python: str, shell: str
) -> None:
    error = DeltamendError(f"tensor 'a' overflows; try {option(name, value)}, or give up")
    assert str(error) == f"tensor 'a' overflows; try {python}, or give up"
    assert error.spelled(spelled_on_command_line) == f"tensor 'a' overflows; try {shell}, or give up"


def test_every_option_of_a_text_is_spelled_by_itself() -> None:
    text = f"{option('include')} more or {option('exclude')} less, {option('workers', '2')}"
    assert spell(text, spelled_in_python) == "include more or exclude less, workers=2"


def test_text_without_an_option_is_left_alone() -> None:
    for text in ("", "plain", "out_dtype=fp32", "\\1 {name} %s [bold]", "a\nb"):
        assert spell(text, spelled_in_python) == text


def test_a_hostile_name_is_not_taken_for_an_option() -> None:
    hostile = option("out_dtype", "fp32")
    shown = str(DeltamendError(f"tensor {hostile!r} is missing"))
    assert shown == r"tensor '\ue000out_dtype=fp32\ue001' is missing"
    # Where a text is not quoted, the worst that can happen is that a piece of it is spelled as an option.
    assert str(DeltamendError(f"{hostile}: cannot be read")) == 'out_dtype="fp32": cannot be read'
    assert str(DeltamendError("\ue000: half a mark, \ue001\ue000")) == "\ue000: half a mark, \ue001\ue000"


@pytest.mark.parametrize("kind", [kind for name, kind in vars(errors).items() if name.endswith("Error")])
def test_every_error_is_a_deltamend_error_with_a_docstring(kind: type) -> None:
    assert issubclass(kind, DeltamendError)
    assert kind.__doc__
