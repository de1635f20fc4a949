"""Text that means harm: YAML, templates, records, names on a terminal, and streams that cannot be written to."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import lzma
import os
import random
import resource
import sys
import time
import traceback
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import yaml

import deltamend
from benchmarks.faults.promises import Bench
from deltamend.cli import main as command_line
from deltamend.errors import DeltamendError
from deltamend.evaluation.record import read_evaluation
from deltamend.evaluation.suite import read_suite
from deltamend.machine import templates
from deltamend.machine.escaping import latex_text, markdown_text, one_line, printable_json
from deltamend.machine.templates import TemplateLimitError, TemplateTextError
from deltamend.repairing.yaml_config import read_config
from deltamend.scoring.cells_file import read_cells_file
from deltamend.study.config import read_study
from deltamend.study.records import CellRecord, read_record
from tests.forked_command_line import become_command_line
from tests.mutations import STRANGE, template

SECONDS, MEMORY = 20.0, 300_000
"""Processor time, and KiB of peak memory beyond what was there, that reading one text may take."""
_ACTING = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


def _limited(act: Callable[[], object], allowed: tuple[type[Exception], ...]) -> str:
    """What is wrong with how something hostile was taken, or ""."""
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    said = ""
    try:
        act()
    except allowed as error:
        said = str(error)
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:300]
    if "\n" in said:
        return f"more than one line: {said!r}"
    if time.process_time() - started > SECONDS:
        return f"{time.process_time() - started:.0f} s"
    more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return f"{more >> 10} MiB" if more > MEMORY else ""


def hostile_yaml(bench: Bench, tries: int) -> Iterator[str]:
    """A config, suite, study or list of cells that unfolds, nests, is no YAML, or holds values that are none of their kind."""
    readers = (read_config, lambda path: read_suite(str(path)), read_cells_file, read_study)
    file = bench.work / "file.yaml"
    for number in range(tries):
        file.write_bytes(_yaml(bench.chance).encode("utf-8", "surrogatepass"))
        yield _limited(partial(readers[number % len(readers)], file), (DeltamendError,))


def _yaml(chance: random.Random) -> str:
    width, depth = chance.randint(2, 12), chance.randint(2, 12)
    many = chance.choice([100, 10_000, 200_000])
    scalar = chance.choice(
        ["!!bool", "!!int", "!!float", "!!timestamp", "!!binary", "!!set", "!!omap", "!!python/name:os.system"]
    )
    nodes = chance.choice(["{{<<: [{0}]}}", "[{0}]", "{{x: [{0}]}}"])
    kinds: Sequence[Callable[[], str]] = (
        lambda: "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {nodes.format(', '.join([f'*a{n - 1}'] * width))}\n" for n in range(1, depth)),
        lambda: chance.choice(["[", "{a: ", "- ", "? "]) * many,
        lambda: f"a: {scalar} {chance.choice(['x', '', '2024-02-31', '[1]', '{a: b}', '9' * many])}",
        lambda: f"a: {chance.choice(['9' * many, '1' + ':1' * many, '0x' + 'f' * many, '1e' + '9' * many, '1_' * many])}",
        lambda: yaml.safe_dump({"name": chance.choice(STRANGE), "version": chance.choice(STRANGE), "tasks": [chance.choice(STRANGE)]}),
        lambda: "".join(chance.choice("[]{}:-?,&*!|>'\"%@` \n\t#<0a~\\") for _ in range(chance.randint(1, 400))),
        lambda: "a: 1\n" * many + "b: 2\n",
        lambda: chance.choice(["\ufeff", "\x00", "\u2028", "--- ", "%YAML 9.9\n---\n"]) + "a: 1\n--- \nb: 2",
    )  # fmt: skip
    return chance.choice(kinds)()


def hostile_templates(_bench: Bench, tries: int) -> Iterator[str]:
    """A Jinja text that loops, grows, nests, calls itself or reaches for Python's objects; then an honest one is rendered."""
    chance = random.Random(tries)
    child = templates._Child(0.2)  # as the default, with less patience
    before = templates._shared_child
    templates._shared_child = lambda: child  # type: ignore[assignment]
    try:
        for _ in range(tries):
            text = _template(chance)
            render = partial(templates.render_texts, text, [{"q": "x"}])
            fault = _limited(render, (TemplateLimitError, TemplateTextError))
            yield fault or ("" if templates.render_texts("{{ q }}!", [{"q": "x"}]) == ["x!"] else "an honest one fails")
    finally:
        templates._shared_child = before


def _template(chance: random.Random) -> str:
    loops = chance.randint(2, 5)
    size = chance.choice([10, 1_000, 99_999, 10**9])
    body = chance.choice(["", "{{ q }}", "{{ q * 99 }}", "{% set n.t = n.t + n.t %}", "{% set n.l = n.l + n.l %}"])
    filters = (
        "center",
        "indent",
        "wordwrap",
        "truncate",
        "batch",
        "slice",
        "round",
        "filesizeformat",
        "tojson",
        "urlize",
        "join",
    )
    kinds: Sequence[Callable[[], str]] = (
        lambda: "{% set n = namespace(t=q, l=[1]) %}" + f"{{% for a in range({min(size, 99_999)}) %}}" * loops + body + "{% endfor %}" * loops,
        lambda: f"{{{{ q * {size} }}}}" * loops,
        lambda: f"{{{{ (q * 999) | {chance.choice(filters)}({size}) }}}}",
        lambda: "{% macro m(x) %}" + body.replace("n.", "x.") + "{{ m(x) }}" * loops + "{% endmacro %}{{ m(q) }}",
        lambda: "{{ " + " ** ".join(["9"] * loops) + " }}{{ 9 ** (9 ** " + str(loops + 4) + ") }}",
        lambda: chance.choice(["{% if 1 %}", "{{ (", "{# ", "{% for a in q %}", "{{ [" * 9]) * min(size, 20_000),
        lambda: "{{ q" + "".join(chance.choice([".__class__", "['__init__']", ".__globals__", "|attr('__mro__')", ".format"]) for _ in range(loops)) + " }}",
        lambda: "{{ '{0.__class__}%s' | format(q) }}{{ '%" + str(size) + "d' % 1 }}",
        lambda: "".join(chance.choice("{}%q .|()[]'~+*/0a\n") for _ in range(chance.randint(1, 200))),
        lambda: "{% include q %}{% import q as z %}{% extends q %}",
    )  # fmt: skip
    return chance.choice(kinds)()


def hostile_records(bench: Bench, tries: int) -> Iterator[str]:
    """A record that is damaged, unpacks to gigabytes, nests, is no regular file, or holds numbers beyond all bounds."""
    for number in range(tries):
        packed = number % 2 == 1
        file = bench.work / ("cell.json.xz" if packed else "record.json.gz")
        _record(bench.chance, file, lzma.compress if packed else gzip.compress)
        yield _limited(
            partial(read_record, file, CellRecord) if packed else partial(read_evaluation, file), (DeltamendError,)
        )
        file.unlink()


def _record(chance: random.Random, file: Path, pack: Callable[[bytes], bytes]) -> None:
    item = {"id": "1", "prompt_hash": "h", "score": chance.choice([1, 1e160, 1e308, 10**400, float("nan"), *STRANGE])}
    task = {"metric": "acc", "version": "1", "fewshot": chance.choice([0, *STRANGE]), "items": [item]}
    record: dict[str, Any] = {
        "format": 1,
        "model": "m",
        "suite": "s",
        "suite_version": "1",
        "seed": 0,
        "tasks": {"t": task},
    }
    record[chance.choice(["model", "tasks", "seed", "settings", "x\n", "versions"])] = chance.choice(
        [*STRANGE, task, record["tasks"]]
    )
    whole = json.dumps(record, default=str).encode("utf-8", "surrogatepass")
    kinds: Sequence[Callable[[], object]] = (
        lambda: file.write_bytes(pack(whole)),
        lambda: file.write_bytes(whole),
        lambda: file.write_bytes(pack(whole)[: chance.randrange(len(whole) // 2)]),
        lambda: file.write_bytes(pack(bytes(1 << 26)) * chance.choice([1, 100])),
        lambda: file.write_bytes(pack(b'{"tasks": {"t": {"items": [' + b"{}," * chance.choice([100, 2_000_000]))),
        lambda: file.write_bytes(pack(chance.choice([b"[", b'{"a":']) * 200_000)),
        lambda: file.write_bytes(pack(whole.replace(b"0", b"9" * 5_000))),
        lambda: os.mkfifo(file),
        lambda: file.symlink_to(chance.choice(["/dev/zero", "/proc/self/mem", "/dev/tty", file.name])),
        lambda: file.write_bytes(bytes(chance.randrange(256) for _ in range(200))),
    )  # fmt: skip
    chance.choice(kinds)()


def hostile_names(bench: Bench, tries: int) -> Iterator[str]:
    """Names and texts with escape sequences, marks of direction and line ends, in what is printed and written."""
    texts = ("\x1b]0;t\x07", "\x1b[2J", "\x9b31m", "\r", "\n# x", "\u202e", "\u2066", "\u200b", "\u2028", "\x00", "\udce9",
             "\U000e0041", "<script>", "|", "`", "\\", "](x)", "$\\input{x}$", "[red]", "a", "ü")  # fmt: skip
    folder = bench.work / "model"
    folder.mkdir(exist_ok=True)
    for file in bench.base.glob("*.safetensors*"):
        (folder / file.name).symlink_to(file)
    for number in range(tries):
        text = "".join(bench.chance.choice(texts) for _ in range(bench.chance.randint(1, 6)))
        shown = (
            one_line(text),
            markdown_text(text),
            latex_text(text),
            printable_json(json.dumps([text], ensure_ascii=False)),
        )
        acting = [one for one in "".join(shown) if unicodedata.category(one) in _ACTING]
        config = {**json.loads((bench.base / "config.json").read_text()), "architectures": [text], "model_type": text}
        (folder / "config.json").write_text(json.dumps(config))
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            sys.argv = ["deltamend", "inspect", str(folder), *(["--json"] if number % 2 else [])]
            with contextlib.suppress(SystemExit):
                command_line()
        acting += [one for one in said.getvalue() if one != "\n" and unicodedata.category(one) in _ACTING]
        yield f"{text!r} is shown as {acting!r}" if acting else ""
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()


def closed_streams(bench: Bench, tries: int) -> Iterator[str]:
    """A repair whose standard output or error is full, closed, or read by nobody: OUT has to be whole, and no traceback shown."""
    pair = bench.work.parent / "small"
    for side, files in template().items():
        (pair / side).mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (pair / side / name).write_bytes(content)
    states = ("open", "full", "closed", "unread")
    said = bench.work.parent / "said"
    for number in range(tries):
        streams = (bench.chance.choice(states), states[number % 4], bench.chance.choice(states))
        arguments = ["repair", str(pair / "base"), str(pair / "finetuned"), str(bench.out), "--overwrite"]
        said.write_bytes(b"")
        child = os.fork()
        if child == 0:
            _become([*arguments, *(["--json"] if bench.chance.random() < 0.5 else [])], streams, said)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        printed = said.read_text()
        if not bench.out.exists() or deltamend.verify(bench.out):
            yield f"{streams}: OUT is not whole: {printed[-200:]!r}"
        elif "Traceback" in printed or "ignored" in printed or code != int(streams[1] != "open"):
            yield f"{streams}: exit code {code}: {printed[-200:]!r}"
        else:
            yield ""


def _become(arguments: list[str], states: tuple[str, str, str], said: Path) -> NoReturn:
    """Run the command line in this process, whose three streams are put into these states."""

    def open_streams() -> None:
        for number, state in enumerate(states):
            if state == "closed":
                os.close(number)
                continue
            ways = {"open": said, "full": Path("/dev/full"), "unread": None}
            opened = ways[state]
            descriptor = _unread() if opened is None else os.open(opened, os.O_RDWR | os.O_APPEND)
            os.dup2(descriptor, number)
        sys.stdout = None if states[1] == "closed" else os.fdopen(1, "w", closefd=False)
        sys.stderr = None if states[2] == "closed" else os.fdopen(2, "w", closefd=False)

    def tell() -> None:
        with said.open("a") as file:
            traceback.print_exc(file=file)

    become_command_line(arguments, open_streams, tell)


def _unread() -> int:
    """The end for writing of a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    return writing
