"""A study writes under names that are its own, and never through a link."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltamend.errors import OutputError
from deltamend.machine.locks import lock_file
from deltamend.study.own_folders import FOLDERS, file_name, refuse_links
from deltamend.study.records import base_file, cell_file
from deltamend.study.run import alone_in

NAMES = st.from_regex(r"[ab_][ab_.+-]{0,5}", fullmatch=True)
CELLS = st.tuples(NAMES, NAMES, NAMES, st.integers(0, 9).map(str))


@pytest.mark.slow
@given(CELLS, CELLS)
def test_two_cells_never_share_a_file(one: tuple[str, ...], other: tuple[str, ...]) -> None:
    out = Path("out")
    assert (cell_file(out, "/".join(one)) == cell_file(out, "/".join(other))) == (one == other)
    for device in ("cpu", "cuda", "cuda:0"):
        first, second = base_file(out, one[0], one[1], "cpu"), base_file(out, other[0], other[1], device)
        assert (first == second) == (one[:2] == other[:2] and device == "cpu")


def test_usual_names_are_as_they_were() -> None:
    assert file_name("smol_lm-2/gsm8k_sums/lora-r_16/0") == "smol_lm-2__gsm8k_sums__lora-r_16__0"


LINKS: dict[str, Callable[[Path, Path], object]] = {
    **{name: lambda place, other: place.symlink_to(other) for name in FOLDERS},
    "models/base": lambda place, other: place.symlink_to(other),
    "models/.base-x.part": lambda place, other: place.symlink_to(other),
    "cells/a__b__c__0.json.xz": lambda place, other: place.symlink_to(other / "file"),
    "exams/a/b/target.jsonl": lambda place, other: place.symlink_to(other / "file"),
    "bases ": lambda place, _: place.write_text("a file"),
    ".lock": lambda place, other: place.symlink_to(other / "file"),
    ".lock ": lambda place, other: os.link(other / "file", place),
    ".lock  ": lambda place, _: os.mkfifo(place),
}
"""By the name in the study's folder, to which blanks are added where one name has several kinds."""


@pytest.mark.parametrize("name", sorted(LINKS))
def test_links_in_a_studys_folder_are_refused_and_not_followed(name: str, tmp_path: Path) -> None:
    other, out = tmp_path / "precious", tmp_path / "out"
    (other / ".x.part").mkdir(parents=True)
    (other / "file").write_text("mine")
    place = out / name.strip()
    place.parent.mkdir(parents=True)
    LINKS[name](place, other)
    with pytest.raises(OutputError) as caught, alone_in(out):
        pass
    assert str(caught.value).isprintable()
    assert (other / "file").read_text() == "mine"
    assert (other / ".x.part").is_dir()


def test_a_studys_own_folder_is_taken_by_one_at_a_time(tmp_path: Path) -> None:
    for name in FOLDERS:
        (tmp_path / name / "inner").mkdir(parents=True)
    refuse_links(tmp_path)
    refuse_links(tmp_path / "gone")
    with (
        lock_file(tmp_path / ".lock", wait=False),
        pytest.raises(BlockingIOError),
        lock_file(tmp_path / ".lock", wait=False),
    ):
        pass
