"""A file or a folder is complete or is not there, whoever else writes it and whatever writes it."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from deltamend.errors import OutputError
from deltamend.machine.atomic import publish, remove, whole_file, write_whole
from deltamend.machine.cache import default_cache_dir


def test_two_that_write_one_file_at_a_time_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    with whole_file(path) as one, whole_file(path) as other:
        one.write_text("one")
        other.write_text("other")
        assert one.read_text() == "one"
    assert path.read_text() == "one"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_as_readable_as_the_umask_lets_it_be(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "text", "a")
        with whole_file(tmp_path / "tensors") as temporary:
            save_file({"a": np.zeros(3)}, temporary)
    finally:
        os.umask(before)
    assert {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {"text": 0o640, "tensors": 0o640}
    assert load_file(tmp_path / "tensors")["a"].shape == (3,)


def test_a_failure_leaves_the_old_file_and_nothing_of_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "tensors"
    path.write_text("old")

    def fails() -> None:
        with whole_file(path) as temporary:
            temporary.write_text("half of the n")
            temporary.with_name(".tmp123").write_text("what safetensors renames into place")
            raise SafetensorError("Error while serializing: I/O error:\nNo space left on device")

    with pytest.raises(OutputError, match=r"tensors: cannot be written \(.*: No space left on device\); check the"):
        fails()
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_text() == "old"


@pytest.mark.slow
def test_a_disk_that_is_full_for_safetensors_is_one_line(tmp_path: Path) -> None:
    """In a process of its own, whose files may not grow beyond 100 kB."""
    program = (
        "import resource, sys\nimport numpy as np\nfrom pathlib import Path\nfrom safetensors.numpy import save_file\n"
        "from deltamend.errors import OutputError\nfrom deltamend.machine.atomic import whole_file\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n"
        f"    with whole_file(Path({str(tmp_path / 'tensors')!r})) as temporary:\n"
        "        save_file({'a': np.zeros(100_000)}, temporary)\n"
        "except OutputError as error:\n"
        "    sys.exit(str(error))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "tensors: cannot be written (Error while serializing: I/O error: File too large" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_published_folder_appears_whole(tmp_path: Path) -> None:
    with publish(tmp_path / "model") as part:
        (part / "weights").write_text("w")
        assert not (tmp_path / "model").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model" / "weights").read_text() == "w"


def test_a_failed_run_leaves_the_old_folder_and_nothing_else(tmp_path: Path) -> None:
    with publish(tmp_path / "model") as part:
        (part / "weights").write_text("old")

    def fail() -> None:
        with publish(tmp_path / "model") as part:
            (part / "weights").write_text("half of the n")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model" / "weights").read_text() == "old"


def test_a_cache_that_cannot_be_made_is_said_with_the_variable_that_moves_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("mine")
    monkeypatch.setenv("DELTAMEND_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(OutputError, match=r"cannot be written \(Not a directory\); .* or set DELTAMEND_CACHE"):
        publish(default_cache_dir() / "model").__enter__()
    with pytest.raises(OutputError) as elsewhere:
        publish(tmp_path / "file" / "results").__enter__()
    assert "DELTAMEND_CACHE" not in str(elsewhere.value)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        RuntimeError("I/O error: No space left on device (os error 28)"),  # safetensors' kind
    ],
)
def test_a_full_disk_is_an_error_of_the_output(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(OutputError, match=r"model: cannot be written .*No space left"), publish(tmp_path / "model"):
        raise error
    assert not list(tmp_path.iterdir())


def test_a_folder_that_another_process_made_of_the_same_is_kept(tmp_path: Path) -> None:
    with publish(tmp_path / "model", keep=True) as part:
        (part / "weights").write_text("ours")
        with publish(tmp_path / "model", keep=True) as theirs:
            (theirs / "weights").write_text("theirs")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model" / "weights").read_text() == "theirs"


def test_a_folder_is_replaced_unless_it_is_to_be_kept(tmp_path: Path) -> None:
    for content in ("old", "new"):
        with publish(tmp_path / "model") as part:
            (part / content).write_text(content)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["new"]


def test_a_folder_that_appears_in_the_last_moment_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, rename = tmp_path / "model", Path.rename

    def beaten(path: Path, target: Path) -> Path:
        folder.mkdir()
        (folder / "weights").write_text("theirs")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", beaten)
    with publish(folder) as part:
        (part / "weights").write_text("ours")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (folder / "weights").read_text() == "theirs"


def test_a_folder_that_is_removed_is_gone_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    (folder / "weights").mkdir(parents=True)

    def killed(*_arguments: Any, **_options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            remove(folder)
    (left,) = tmp_path.iterdir()
    assert left.match(".model-*.part")


KILLED = (
    "import os, signal\nfrom pathlib import Path\nfrom deltamend.machine.atomic import publish, whole_file\n"
    "with {call} as part:\n    os.kill(os.getpid(), signal.SIGKILL)\n"
)


@pytest.mark.slow
@pytest.mark.parametrize("in_cache", [False, True])
def test_what_a_killed_process_left_is_deleted_and_what_a_living_one_makes_is_not(
    tmp_path: Path, in_cache: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if in_cache:
        monkeypatch.setenv("DELTAMEND_CACHE", str(tmp_path))
    names = ("model", "other")
    for call in (f"publish(Path({str(tmp_path)!r}, {name!r}))" for name in names):
        assert subprocess.run([sys.executable, "-c", KILLED.format(call=call)], check=False).returncode == -9
    (tmp_path / ".model-notes").mkdir()
    (tmp_path / ".model-mine.part").write_text("a file, which is nothing that we make")
    assert len(list(tmp_path.glob(".*-????????.part"))) == (1 if in_cache else 2)  # the second has deleted the first
    with whole_file(tmp_path / "model") as living:
        living.write_text("first")
        write_whole(tmp_path / "model", "second")
        assert living.exists()
    left = {path.name.split("-")[0] for path in tmp_path.glob(".*-????????.part")}
    assert left == (set() if in_cache else {".other"})
    assert (tmp_path / "model").read_text() == "first"
    assert {path.name for path in tmp_path.iterdir()} >= {".model-notes", ".model-mine.part"}
