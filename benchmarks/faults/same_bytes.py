"""Does `deltamend repair` still write the same bytes? Repairs pairs with every method and compares hashes with a table.

    python -m benchmarks.faults.same_bytes --pairs tiny
    python -m benchmarks.faults.same_bytes --base BASE --finetuned FINETUNED --cache DIR
    python -m benchmarks.faults.same_bytes --base BASE --finetuned FINETUNED --cache DIR --write

The first command checks tiny pairs, which tiny_pairs.py makes and which are the same on every machine. The second checks the
demo's pair as well: `deltamend demo --cache FOLDER` leaves BASE and FINETUNED in FOLDER, as `base-smollm2-135m-instruct-…`
and `finetuned-smollm2-…`. Fine-tuning gives other bytes on another machine. (FINETUNED of the table was trained by the demo's
code with its bf16 autocast switched off, because the processor has no instructions for bf16 and would have taken hours.)
Where BASE or FINETUNED are not those the table was made with, the rows of the demo's pair are counted as not compared, and
that is no failure. To compare two versions of the program on such a machine, write the table with the first version and
check the second. --cache is a folder that keeps what `deltamend calibrate` computes of the demo's pair. Files that are there
already are used again, so give an empty folder to check `deltamend calibrate`, too. The third command writes the table,
benchmarks/results/faults/same_bytes.json, from the program as it is; with --pairs or --only it replaces these rows alone.

The exit code is 1 if a row differs, and the rows that differ are named with the files that do.

The script knows the program by its command line alone (`python -m deltamend`, found through PYTHONPATH if that is set), so
that it runs unchanged before and after a change of the program's insides. A row of the table is a pair, a kind of output and
the options of a run (same_bytes_runs.py). It holds the first 16 hex digits of the SHA-256 of every file of OUT, or the exit
code of a run that the program refused, whose message may change. Not everything is compared byte for byte:

- README.md is the model card, whose wording may change on purpose. Its hash stands under `words`. Rows whose words differ
  are counted and named, and are no failure.
- deltamend.json is parsed and hashed without what differs from run to run (`run`, which holds seconds, workers and versions;
  `seconds` of each tensor), without what follows from the rest (`self_sha256`, and the entry of README.md in `files`), and
  without what was only found about the pair (`coverage`, `parent`).
- The sentences in deltamend.json (every `reason`, and `notes`), the program's version and `plan_sha256`, which depends on the
  version, are left out of that hash as well. They have a hash of their own under `words`.

Sums of floating-point numbers depend on the processor. Every run is told to use the kernels for AVX2, so that the table of
the tiny pairs should hold on any x86-64 processor that has it; this was tried on one processor only, which the table names.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.faults.same_bytes_runs import CONFIGS, DEMO, Run, runs_of
from benchmarks.faults.tiny_pairs import Pair, write_pairs
from benchmarks.shared.arguments import script_parser
from benchmarks.shared.paths import RESULTS

TABLE = RESULTS / "faults" / "same_bytes.json"
LIBRARIES = ("ml_dtypes", "numpy", "pydantic", "safetensors", "scipy", "tokenizers", "torch", "transformers", "xxhash")
PINNED = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "HF_HUB_OFFLINE": "1",
    "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR",
    "OMP_NUM_THREADS": "2",
    "OPENBLAS_CORETYPE": "Haswell",
}
"""Environment of every command. The number of threads matters to `calibrate`; a repair has one thread a worker."""
CALIBRATIONS = {
    "activations": "calibrate activations base OUT",
    "base_fisher": "calibrate fisher base texts.jsonl OUT --chat",
    "fisher": "calibrate fisher finetuned texts.jsonl OUT --chat",
    "mask": "calibrate graft base finetuned few-texts.jsonl OUT --chat --steps 2 --batch 2",
}
"""What makes the files that methods ask for, of the demo's pair. graft computes in bf16, which many processors emulate slowly."""

Row = dict[str, Any]
"""What came of a run: `files` and `words`, hashes by name; or `refused`, an exit code; or `crashed`, a message."""


@dataclass(frozen=True)
class Compared:
    """Names of rows by what came of the comparison; `different` says of each what differs, too."""

    equal: tuple[str, ...]
    different: Mapping[str, str]
    words: tuple[str, ...]
    not_compared: tuple[str, ...]


def deltamend(arguments: Sequence[str], folder: Path, cache: Path) -> int:
    """Run a command of the program in `folder`, with `cache` for its own cache; its exit code.

    Raises:
        RuntimeError: it ended with a traceback, or by a signal, and not with an error of its own.
    """
    # Commands run in another folder than this script, so that the paths in PYTHONPATH have to be absolute.
    paths = [str(Path.cwd() / path) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    environment = {**os.environ, **PINNED, "PYTHONPATH": os.pathsep.join(paths), "DELTAMEND_CACHE": str(cache)}
    command = [sys.executable, "-m", "deltamend", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if "Traceback (most recent call last)" in done.stderr or done.returncode < 0:
        raise RuntimeError(f"`deltamend {' '.join(arguments)}` crashed: {done.stderr[-2000:]}")
    return done.returncode


def digest(content: bytes) -> str:
    """What the table holds of some bytes: the first 16 hex digits of their SHA-256."""
    return hashlib.sha256(content).hexdigest()[:16]


def hashes(folder: Path) -> dict[str, str]:
    """The hash of every file below a folder, by its name."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: digest(files[name].read_bytes()) for name in sorted(files)}


def facts_and_words(text: bytes) -> tuple[bytes, bytes]:
    """What deltamend.json says that is compared, and what it says in words; see above for what is neither."""
    manifest = json.loads(text)
    words = [manifest.pop("deltamend"), manifest.pop("plan_sha256"), manifest.pop("notes")]
    del manifest["run"], manifest["self_sha256"]
    for added in ("coverage", "parent"):  # fields that say what was found, and no part of what was done
        manifest.pop(added, None)
    manifest["files"] = [file for file in manifest["files"] if file["name"] != "README.md"]

    def facts_of(value: Any) -> Any:
        if isinstance(value, list):
            return [facts_of(item) for item in value]
        if not isinstance(value, dict):
            return value
        if "reason" in value:
            words.append(value["reason"])
        return {key: facts_of(item) for key, item in value.items() if key not in {"reason", "seconds"}}

    facts = facts_of(manifest)
    return json.dumps(facts).encode(), json.dumps(words).encode()


def carried_out(run: Run, pair: Pair, out: Path) -> Row:
    """Do a run, hash what it wrote, and delete that."""
    folders = [pair.base, pair.finetuned, str(out)]
    arguments = ["repair", *folders, *run.arguments(pair.files), "--as", run.output, "--quiet"]
    try:
        code = deltamend(arguments, pair.folder, pair.folder / "cache")
    except RuntimeError as error:
        return {"crashed": str(error)}
    if code:
        return {"crashed": f"exit code {code}, but OUT was written"} if out.exists() else {"refused": code}
    files = hashes(out)
    facts, words = facts_and_words((out / "deltamend.json").read_bytes())
    shutil.rmtree(out)
    return {
        "files": {**{name: files[name] for name in files if name != "README.md"}, "deltamend.json": digest(facts)},
        "words": {"README.md": files["README.md"], "deltamend.json": digest(words)},
    }


def rows_of(pairs: Mapping[str, Pair], scratch: Path, jobs: int, only: str) -> dict[str, Row]:
    """The runs of the pairs whose names in the table have `only` in them, `jobs` at a time."""
    rows: dict[str, Row] = {}
    for name, pair in pairs.items():
        runs, started = [run for run in runs_of([name]) if only in run.key], time.perf_counter()
        with ThreadPoolExecutor(jobs) as pool:
            outs = [scratch / "outs" / name / str(number) for number in range(len(runs))]
            done = pool.map(carried_out, runs, [pair] * len(runs), outs)
            rows |= {run.key: row for run, row in zip(runs, done, strict=True)}
        print(f"{name}: {len(runs)} runs in {time.perf_counter() - started:.0f} s", flush=True)
    return rows


def demo_pair(base: Path, finetuned: Path, cache: Path, folder: Path) -> tuple[Pair, dict[str, Row]]:
    """The demo's pair in a folder where it goes by the names `base` and `finetuned`, and the rows of what was computed of it.

    What `cache` does not hold yet is computed.

    Raises:
        RuntimeError: a computation failed.
    """
    folder.mkdir()
    cache.mkdir(parents=True, exist_ok=True)
    for name, target in (("base", base), ("finetuned", finetuned), ("cache", cache)):
        (folder / name).symlink_to(target.resolve(), target_is_directory=True)
    numbers = np.random.default_rng(0).integers(10, 100, (32, 2)).tolist()
    lines = [json.dumps({"prompt": f"What is {a} + {b}?", "response": f"{a + b}"}) for a, b in numbers]
    for jsonl, texts in (("texts.jsonl", lines), ("few-texts.jsonl", lines[:4])):
        (folder / jsonl).write_text("\n".join(texts) + "\n", encoding="utf-8")
    files = {name: str(cache.resolve() / f"{name}.safetensors") for name in CALIBRATIONS}
    for name, command in CALIBRATIONS.items():
        if not Path(files[name]).exists():
            _computed(command.replace("OUT", files[name]), folder)
            write_metadata_in_order(Path(files[name]))
    # What --method auto wants to know of the base: a dry run puts it into the cache, before runs side by side ask for it.
    known = set(cache.glob("activations-*.safetensors"))
    _computed("repair base finetuned out --method auto --dry-run", folder)
    for file in set(cache.glob("activations-*.safetensors")) - known:
        write_metadata_in_order(file)
    rows = {f"{DEMO} | calibrate | {name}": {"files": {name: digest(Path(files[name]).read_bytes())}} for name in files}
    auto = {file.name: digest(file.read_bytes()) for file in sorted(cache.glob("activations-*.safetensors"))}
    if not auto:
        raise RuntimeError(f"--method auto has put no file activations-….safetensors into {cache}")
    return Pair(folder, "base", "finetuned", files), {**rows, f"{DEMO} | calibrate | auto": {"files": auto}}


def _computed(command: str, folder: Path) -> None:
    print(f"deltamend {command}", flush=True)
    if deltamend([*command.split(), "--quiet"], folder, folder / "cache"):
        raise RuntimeError(f"`deltamend {command}` failed in {folder}")


def write_metadata_in_order(path: Path) -> None:
    """Write a safetensors file again with its metadata in alphabetical order: the library writes them in a random one."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[start:])


def compare(
    table: Mapping[str, Any], inputs: Mapping[str, Mapping[str, str]], rows: Mapping[str, Row], only: str
) -> Compared:
    """Compare rows with those of the table whose names have `only` in them, for the pairs in `inputs`.

    Rows of a pair whose inputs differ from the table's are not compared, and neither are runs that read a calibration of
    another content than the table's: the row of the calibration itself is, and says so.
    """
    same = {name for name in inputs if inputs[name] == table["inputs"].get(name)}
    calibrations = [key for key in rows if " | calibrate | " in key]
    expected: dict[str, Row] = {
        key: row
        for key, row in table["rows"].items()
        if key.partition(" | ")[0] in inputs and (only in key or key in calibrations)
    }
    changed = {key.rpartition(" | ")[2] for key in calibrations if rows[key] != expected.get(key)}
    readers = {run.key for run in runs_of(inputs) if run.pair == DEMO and run.files & changed}
    both = expected.keys() | rows.keys()
    left_out = {key for key in both if key.partition(" | ")[0] not in same or key in readers}
    different = {}
    for key in sorted(both - left_out):
        if what := _difference(expected.get(key), rows.get(key)):
            different[key] = what
    equal = sorted(rows.keys() - left_out - different.keys())
    words = [key for key in equal if expected[key].get("words") != rows[key].get("words")]
    return Compared(tuple(equal), different, tuple(words), tuple(sorted(left_out)))


def _difference(expected: Row | None, found: Row | None) -> str:
    """What differs between two rows, words aside; nothing if they are equal."""
    if expected is None or found is None:
        return "is not in the table" if expected is None else "is in the table only"
    if "crashed" in found:
        return str(found["crashed"])
    if expected.get("refused") != found.get("refused"):
        codes = [f"exit code {row['refused']}" if "refused" in row else "was written" for row in (expected, found)]
        return f"{codes[0]} in the table, {codes[1]} now"
    before, now = expected.get("files", {}), found.get("files", {})
    return ", ".join(sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name)))


def machine() -> dict[str, str]:
    """What the hashes may depend on beside the program: the processor, Python and libraries."""
    found = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    python = ".".join(map(str, sys.version_info[:3]))
    return {
        "processor": found[0] if found else "unknown",
        "python": python,
        **{name: version(name) for name in LIBRARIES},
    }


def commit_of_the_program() -> str:
    """The commit of the checkout that `python -m deltamend` runs.

    Raises:
        RuntimeError: it is in no checkout, or its source has changes that are not committed.
    """
    found = importlib.util.find_spec("deltamend")  # says where it is, and does not run it
    if found is None or found.origin is None:
        raise RuntimeError("there is no package deltamend; install it, or set PYTHONPATH to its src")
    folder = Path(found.origin).parent
    commands = (["git", "rev-parse", "--short=7", "HEAD"], ["git", "status", "--porcelain", "."])
    commit, changes = (
        subprocess.run(line, cwd=folder, check=True, capture_output=True, text=True).stdout for line in commands
    )
    if changes.strip():
        raise RuntimeError(f"{folder} has changes that are not committed; commit them before writing the table")
    return commit.strip()


def encoded(table: Mapping[str, Any]) -> str:
    """The table as JSON with a line for each pair's inputs and each row, in alphabetical order."""
    lines = ["{", *(f'"{key}": {json.dumps(table[key])},' for key in ("about", "commit", "machine"))]
    for group in ("inputs", "rows"):
        entries = [f"{json.dumps(key)}: {json.dumps(table[group][key])}" for key in sorted(table[group])]
        lines += [f'"{group}": {{', ",\n".join(entries), "}," if group == "inputs" else "}"]
    return "\n".join([*lines, "}", ""])


def write_table(inputs: Mapping[str, Mapping[str, str]], rows: Mapping[str, Row], *, whole: bool) -> None:
    """Write the table, and say so.

    Args:
        inputs: hashes of the files of each pair.
        rows: what came of the runs.
        whole: whether these are all the rows; otherwise the others stay as they are.

    Raises:
        RuntimeError: a run crashed, the program has changes that are not committed, or the rows that stay were written by
            another commit, on another machine or from other inputs.
    """
    for key, row in rows.items():
        if "crashed" in row:
            raise RuntimeError(f"{key}: {row['crashed']}")
    commit = commit_of_the_program()
    about = (
        f"What deltamend at {commit} writes, as `python -m benchmarks.faults.same_bytes --write` found it. Its --help says "
        "what the rows hold, and how FINETUNED of the demo's pair was made."
    )
    table: dict[str, Any] = {"about": about, "commit": commit, "machine": machine(), "inputs": inputs, "rows": rows}
    if not whole:
        known = json.loads(TABLE.read_text(encoding="utf-8"))
        others = {name: known["inputs"].get(name) for name in inputs if name in known["inputs"]}
        if (known["commit"], known["machine"]) != (commit, table["machine"]) or any(
            inputs[name] != found for name, found in others.items()
        ):
            raise RuntimeError(f"{TABLE} is of another commit, machine or other inputs; leave out --pairs and --only")
        table |= {"inputs": {**known["inputs"], **inputs}, "rows": {**known["rows"], **rows}}
    TABLE.write_text(encoded(table), encoding="utf-8")
    print(f"wrote {len(rows)} of {len(table['rows'])} rows to {TABLE}")


def report(table: Mapping[str, Any], inputs: Mapping[str, Mapping[str, str]], compared: Compared) -> int:
    """Print what came of the comparison; the exit code."""
    here = machine()
    for name in [name for name in here if here[name] != table["machine"].get(name)]:
        print(f"the table was made with {name} {table['machine'].get(name)}; here it is {here[name]}")
    for name in inputs:
        if inputs[name] != table["inputs"].get(name):
            print(f"{name}: the inputs differ from those of the table, so its rows cannot be compared")
    for key in compared.words:
        print(f"other words: {key}")
    for key, what in compared.different.items():
        print(f"DIFFERENT: {key}: {what}")
    total = len(compared.equal) + len(compared.different) + len(compared.not_compared)
    print(
        f"{total} rows: {len(compared.equal)} equal ({len(compared.words)} of them in other words), "
        f"{len(compared.different)} different, {len(compared.not_compared)} not compared; the table is of {table['commit']}"
    )
    tiny_differ = any(name != DEMO and inputs[name] != table["inputs"].get(name) for name in inputs)
    return 1 if compared.different or tiny_differ else 0


def main() -> None:
    """Check, or write the table."""
    parser = script_parser(__doc__)
    parser.add_argument("--pairs", choices=("all", "tiny", DEMO), default="all", help="default: all")
    parser.add_argument("--base", type=Path, help="the base of the demo's pair")
    parser.add_argument("--finetuned", type=Path, help="the fine-tuned model of the demo's pair")
    parser.add_argument("--cache", type=Path, help="where files computed of the demo's pair are kept")
    parser.add_argument("--only", default="", help="text that the name of a row has in it, such as 'llama | adapter'")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time; default: 2")
    parser.add_argument("--scratch", type=Path, help="where to work, in a folder that is removed afterwards")
    parser.add_argument("--write", action="store_true", help="write the table from the program as it is")
    given = parser.parse_args()
    if given.pairs != "tiny" and None in (given.base, given.finetuned, given.cache):
        parser.error("the demo's pair needs --base, --finetuned and --cache; or give --pairs tiny")
    for folder in () if given.pairs == "tiny" else (given.base, given.finetuned):
        if not folder.is_dir():
            parser.error(f"there is no folder {folder}")
    if given.write:
        commit_of_the_program()
    known = {} if given.write else json.loads(TABLE.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory(prefix="same-bytes-", dir=given.scratch) as name:
        scratch = Path(name).resolve()
        pairs = {} if given.pairs == DEMO else write_pairs(scratch)
        inputs = {name: hashes(pair.folder) for name, pair in pairs.items()}
        rows: dict[str, Row] = {}
        if given.pairs != "tiny":
            sides = {"base": given.base, "finetuned": given.finetuned}
            inputs[DEMO] = {f"{side}/{file}": hash_ for side in sides for file, hash_ in hashes(sides[side]).items()}
            if given.write or inputs[DEMO] == known["inputs"].get(DEMO):  # else there is nothing to compare
                pairs[DEMO], rows = demo_pair(given.base, given.finetuned, given.cache, scratch / DEMO)
        rows |= rows_of({name: _with_configs(pair) for name, pair in pairs.items()}, scratch, given.jobs, given.only)
    if given.write:
        write_table(inputs, rows, whole=given.pairs == "all" and not given.only)
    else:
        sys.exit(report(known, inputs, compare(known, inputs, rows, given.only)))


def _with_configs(pair: Pair) -> Pair:
    """The pair with the YAML files for --config in its folder."""
    for name, text in CONFIGS.items():
        (pair.folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return replace(pair, files={**pair.files, **{name: f"{name}.yaml" for name in CONFIGS}})


if __name__ == "__main__":
    main()
