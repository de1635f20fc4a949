"""Output that cannot be written: the work is done all the same, and the error is one line that says so."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import deltamend
from deltamend.cli.streams import CarefulStream, careful_streams
from tests.mutations import template

MAIN = "import sys; from deltamend.cli import main; main()"
WAYS = {
    "full": ("> /dev/full", "standard output cannot be written (No space left on device)"),
    "closed": (">&-", "standard output cannot be written (it is closed)"),
    "not read": ("| true", ""),
    "errors full": ("2> /dev/full", ""),
    "errors closed": ("2>&-", ""),
    "all closed": ("<&- >&- 2>&-", ""),
}


def _shell(arguments: list[object], how: str) -> subprocess.CompletedProcess[str]:
    command = shlex.join([sys.executable, "-c", MAIN, *map(str, arguments)])
    return subprocess.run(["bash", "-o", "pipefail", "-c", f"{command} {how}"], capture_output=True, text=True)


@pytest.fixture(scope="module")
def small_pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pair that is repaired in milliseconds."""
    folder = tmp_path_factory.mktemp("small")
    for side, files in template().items():
        (folder / side).mkdir()
        for name, content in files.items():
            (folder / side / name).write_bytes(content)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("how", "says"), WAYS.values(), ids=WAYS)
def test_out_is_whole_and_the_error_is_one_line(small_pair: Path, tmp_path: Path, how: str, says: str) -> None:
    out = tmp_path / "out"
    done = _shell(["repair", small_pair / "base", small_pair / "finetuned", out, "--json"], how)
    assert deltamend.verify(out) == []
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    if says:
        assert done.returncode == 1
        assert done.stderr.endswith(f"deltamend: {says}; everything else that was asked for is done\n")


@pytest.mark.slow
def test_a_failure_is_said_even_where_nothing_can_be_printed(tmp_path: Path) -> None:
    done = _shell(["inspect", tmp_path], "> /dev/full")
    assert done.returncode == 1
    assert done.stderr.startswith(f"deltamend: {tmp_path}")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_closed_descriptor_is_not_given_to_the_next_file() -> None:
    program = (
        "import os; from deltamend.cli.streams import careful_streams\n"
        "with careful_streams():\n"
        "    number = os.open('/dev/null', os.O_RDONLY)\n"
        "os._exit(number)"
    )
    done = subprocess.run(["bash", "-c", f"{shlex.join([sys.executable, '-c', program])} <&- >&- 2>&-"])
    assert done.returncode > 2


def test_the_streams_are_put_back() -> None:
    before = sys.stdout, sys.stderr
    with careful_streams():
        assert isinstance(sys.stdout, CarefulStream)
    assert (sys.stdout, sys.stderr) == before


@pytest.mark.slow
def test_a_name_that_is_not_utf8_is_shown_and_written(tmp_path: Path, small_pair: Path) -> None:
    finetuned = tmp_path / os.fsdecode(b"caf\xe9")
    finetuned.symlink_to(small_pair / "finetuned")
    for arguments in (["inspect", finetuned], ["diff", finetuned, small_pair / "base", "--json"]):
        done = _shell(list(arguments), "")
        assert done.returncode in (0, 1)
        assert "Traceback" not in done.stderr
        assert "caf\\udce9" in done.stdout
