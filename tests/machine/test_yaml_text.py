"""The one YAML reader: nothing unfolds, nothing hangs, and whatever is wrong is one line."""

from __future__ import annotations

import ast
import os
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from deltamend.cli.options import parameters_of
from deltamend.errors import DeltamendError
from deltamend.evaluation.suite import read_suite
from deltamend.machine.yaml_text import MAX_CHARACTERS, MAX_DEPTH, YamlError, parse_yaml, read_yaml
from deltamend.repairing.yaml_config import read_config
from deltamend.scoring.cells_file import read_cells_file
from deltamend.study.config import read_study

ROOT = Path(__file__).parents[2]
BOMB = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}\n" for n in range(1, 9))
LAUGHS = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9))
REFUSED = {
    "merge bomb": (BOMB, "merge key|alias"),
    "alias bomb": (LAUGHS, r"the alias \*a0"),
    "a merge without an alias": ("a: {<<: {b: 1}}", "merge key"),
    "a node inside itself": ("&a [*a]", r"the alias \*a"),
    "deep lists": ("[" * 10_000, f"{MAX_DEPTH} levels"),
    "deep mappings": ("{a: " * 10_000, f"{MAX_DEPTH} levels"),
    "deep block lists": ("- " * 10_000, f"{MAX_DEPTH} levels"),
    "a long text": ("a: 1\n" * (MAX_CHARACTERS // 5 + 1), "500,000 characters"),
    "a long number": ("a: " + "9" * 5_000, "more than 100 characters"),
    "a long number of base 60": ("a: 1" + ":1" * 50_000, "more than 100 characters"),
    "a long float": ("a: 1." + "0" * 5_000, "more than 100 characters"),
    "no truth": ("a: !!bool x", "'x', which is no bool"),
    "no number": ("a: !!int ''", "'', which is no int"),
    "no float": ("a: !!float x", "'x', which is no float"),
    "no date": ("a: !!timestamp x", "'x', which is no timestamp"),
    "a day that does not exist": ("a: 2024-02-31", "'2024-02-31', which is no timestamp"),
    "an hour that does not exist": ("a: 2024-02-01 25:00:00", "which is no timestamp"),
    "no bytes": ("a: !!binary 'é'", "ascii"),
    "a Python object": ("a: !!python/object/apply:os.system [x]", "python/object"),
    "a key that is a list": ("? [1]\n: 2", "unhashable"),
    "two documents": ("a: 1\n---\nb: 2", "another document"),
    "a control character": ("a: \x00", "#x0000"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "says"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_read_is_refused_at_once_in_one_line(text: str, says: str) -> None:
    started = time.process_time()
    with pytest.raises(YamlError, match=says) as caught:
        parse_yaml(text)
    assert time.process_time() - started < 5
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) <= 300


@pytest.mark.slow
@pytest.mark.parametrize("text", [BOMB, "a: !!bool x", "[" * 10_000], ids=["bomb", "scalar", "deep"])
@pytest.mark.parametrize("suffix", [".yaml"])
def test_every_file_of_yaml_is_read_by_it(tmp_path: Path, text: str, suffix: str) -> None:
    path = tmp_path / f"file{suffix}"
    path.write_text(text)
    readers = (read_config, lambda path: read_suite(str(path)), read_cells_file, read_study)
    for read in readers:
        with pytest.raises(DeltamendError, match="cannot be read as YAML") as caught:
            read(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(DeltamendError, match="is not YAML"):
        parameters_of(["a={x: !!bool foo}"])


def test_only_one_place_reads_yaml() -> None:
    found = set()
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Attribute)
                and getattr(node.value, "id", "") == "yaml"
                and "load" in node.attr.lower()
            ):
                found.add(path.name)
    assert found == {"yaml_text.py"}


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(YamlError, match="not a regular file"):
        read_yaml(tmp_path / "pipe")


def test_our_own_files_are_read_as_pyyaml_reads_them() -> None:
    files = [*ROOT.glob("studies/*.yaml"), *ROOT.glob("src/**/suites/*.yaml"), *ROOT.glob("docs/**/*.yaml")]
    assert len(files) > 6
    for path in files:
        assert read_yaml(path) == yaml.safe_load(path.read_text(encoding="utf-8"))


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**60), 10**60) | st.floats(allow_nan=False) | st.text() | st.dates(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)


@pytest.mark.slow
@given(plain)
@settings(max_examples=100, deadline=None)
def test_plain_data_is_read_as_pyyaml_reads_it(value: object) -> None:
    text = yaml.safe_dump([value], allow_unicode=True)
    assert parse_yaml(text) == yaml.safe_load(text)


@given(st.text(alphabet="[]{}:-?,&*!|>'\"%@` \n\t#<0129ax~\\", max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_text_is_read_or_refused_in_one_line(text: str) -> None:
    try:
        parse_yaml(text)
    except YamlError as error:
        assert "\n" not in str(error)  # noqa: PT017 - most texts are read
