"""A file is whole or is not there, whoever else writes it and whatever writes it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from deltamend.errors import OutputError
from deltamend.machine.atomic import whole_file, write_whole


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
