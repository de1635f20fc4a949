"""Files that somebody else may have made: every reader takes regular files only, and no more of them than it needs."""

from __future__ import annotations

import gzip
import json
import lzma
import os
import resource
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deltamend.calibration.texts import read_texts
from deltamend.checkpoint.json_file import read_json, read_json_list
from deltamend.checkpoint.sidecars import list_sidecars
from deltamend.checkpoint.verification import verify
from deltamend.errors import DeltamendError
from deltamend.evaluation.local_items import read_items
from deltamend.evaluation.record import read_evaluation
from deltamend.evaluation.suite import read_suite
from deltamend.evaluation.unfinished_run import read_finished
from deltamend.machine.bounded_files import UnreadableError, entries_below, read_bytes, read_unpacked
from deltamend.machine.json_text import MAX_DEPTH, JsonError, check_size, parse_json
from deltamend.repairing.yaml_config import read_config
from deltamend.scoring.cells_file import read_cells_file
from deltamend.scoring.lm_eval_folder import read_lm_eval_folder
from deltamend.study.config import read_study
from deltamend.study.records import CellRecord, read_record

READERS: dict[str, Callable[[Path], Any]] = {
    "config.json": read_json,
    "list.json": read_json_list,
    "items.jsonl": lambda path: list(read_items(path)),
    "texts.jsonl": read_texts,
    "record.json": read_evaluation,
    "record.json.gz": read_evaluation,
    ".out.json.deltamend-partial.json": read_finished,
    "cell.json.xz": lambda path: read_record(path, CellRecord),
    "results_2026.json": read_lm_eval_folder,
    "repair.yaml": read_config,
    "suite.yaml": lambda path: read_suite(str(path)),
    "cells.yaml": read_cells_file,
    "study.yaml": read_study,
    "deltamend.json": lambda path: verify(path.parent),
}
ZEROS = bytes(1 << 24)
DEEP = b"[" * 900 + b"]" * 900
CONTENTS: dict[str, bytes] = {
    "nothing": b"",
    "deeper than Python parses": b"[" * 100_000,
    "deep": DEEP,
    "deep in an object": b'{"question": ' + DEEP + b', "answer": ' + DEEP + b', "text": ' + DEEP + b', "tasks": ' + DEEP + b"}",
    "a number of 5,000 digits": b'{"seed": ' + b"9" * 5_000 + b', "a": ' + b"9" * 5_000 + b"}",
    "not UTF-8": b'{"a": "\xff\xfe"}',
    "half a pair of surrogates": b'{"a": "\\ud800", "text": "\\ud800"',
    "NUL": b"\0" * 100,
    "gzip that breaks off": gzip.compress(b"{}" * 1_000)[:-10],
    "xz that breaks off": lzma.compress(b"{}" * 1_000)[:-10],
    "damaged gzip": b"\x1f\x8b" + b"x" * 100,
    "damaged xz": b"\xfd7zXZ\0" + b"x" * 100,
    "gzip that unpacks to 10 GB": gzip.compress(ZEROS) * 600,
    "gzip that unpacks to much more than itself": gzip.compress(ZEROS),
    "xz that unpacks to much more than itself": lzma.compress(ZEROS * 4),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
@pytest.mark.parametrize("name", READERS)
def test_hostile_content_is_an_error_of_one_line_that_names_the_file(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(DeltamendError) as caught:
        READERS[name](path)
    assert time.process_time() - started < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1_000 + len(str(path))


def _bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))


SPECIAL: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "socket": _bind,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "link to itself": lambda path: path.symlink_to(path.name),
}


@pytest.mark.parametrize("make", SPECIAL.values(), ids=SPECIAL)
@pytest.mark.parametrize("name", READERS)
def test_what_is_no_regular_file_is_refused_without_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, make: Callable[[Path], object]
) -> None:
    monkeypatch.chdir(tmp_path)  # the name of a socket may have 107 characters
    make(Path(name))
    ended: list[BaseException | None] = []

    def read() -> None:
        try:
            READERS[name](Path(name))
            ended.append(None)
        except BaseException as error:
            ended.append(error)

    reading = threading.Thread(target=read, daemon=True)
    reading.start()
    reading.join(60)
    assert not reading.is_alive()
    assert isinstance(ended[0], DeltamendError)


@pytest.mark.slow
def test_a_packed_file_may_unpack_to_what_records_unpack_to(tmp_path: Path) -> None:
    item = {"id": "1", "prompt_hash": "0" * 64, "score": 1.0}
    content = json.dumps([item] * 50_000).encode()
    for pack in (gzip.compress, lzma.compress, bytes):
        (tmp_path / "record").write_bytes(pack(content))
        assert read_unpacked(tmp_path / "record", 10**8) == content


def test_a_file_of_proc_is_read_no_further_than_allowed() -> None:
    with pytest.raises(UnreadableError, match="larger than 10 bytes"):
        read_bytes(Path("/proc/self/maps"), 10)


def test_folders_in_folders_are_refused_and_not_followed_to_the_end(tmp_path: Path) -> None:
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(1_100):  # longer than a path may be
        os.mkdir("a", dir_fd=here)
        inner = os.open("a", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)
    with pytest.raises(UnreadableError, match="more than 50 levels"):
        list(entries_below(tmp_path))
    with pytest.raises(DeltamendError, match="more than 50 levels"):
        list_sidecars(tmp_path, frozenset())
    with pytest.raises(DeltamendError, match="more than 50 levels"):
        read_lm_eval_folder(tmp_path)
    subprocess.run(["rm", "-rf", tmp_path / "a"], check=True)  # Python's own rmtree recurses


def test_json_is_read_as_python_reads_it_within_the_limits() -> None:
    text = '{"a": [1, 2.5, null, "ü", {"b": ' + "[" * 90 + "]" * 90 + "}]}"
    assert parse_json(text) == json.loads(text)
    with pytest.raises(JsonError, match=f"deeper than {MAX_DEPTH}"):
        parse_json("[" * 102 + "]" * 102)
    with pytest.raises(JsonError, match="10,000,000 values"):
        check_size(b"[" + b"0," * 10_000_001)
    with pytest.raises(JsonError, match="3 objects"):
        check_size(b"[{},{},{},{}]", objects=3)
