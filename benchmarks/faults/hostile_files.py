"""Files and folders that are not what they seem: outputs that are inputs, archives, a damaged cache, folders that are links."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import random
import shutil
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

import deltamend
from benchmarks.faults.promises import Bench, state
from deltamend.calibration.activations import described
from deltamend.checkpoint.safetensors_header import read_header
from deltamend.checkpoint.torch_file import read_torch_header
from deltamend.cli import main as command_line
from deltamend.errors import DeltamendError, OutputError
from deltamend.machine.cached_folders import checked_folder
from deltamend.methods.input_moments import EIGENVALUES, is_whole
from deltamend.study.own_folders import FOLDERS, file_name
from deltamend.study.run import alone_in

_COMMANDS: tuple[tuple[str, ...], ...] = (
    ("repair", "BASE", "FINETUNED", "OUT", "--overwrite"),
    ("repair", "BASE", "FINETUNED", "REPAIRED", "--html", "OUT"),
    ("diagnose", "BASE", "FINETUNED", "--html", "OUT"),
    ("diagnose", "BASE", "FINETUNED", "--json", "OUT"),
    ("diagnose", "BASE", "FINETUNED", "--csv", "OUT"),
    ("compare", "BASE", "FINETUNED", "--methods", "none", "--csv", "OUT"),
    ("compare", "BASE", "FINETUNED", "--methods", "none", "--html", "OUT"),
    ("diff", "BASE", "FINETUNED", "--csv", "OUT"),
    ("calibrate", "activations", "BASE", "OUT", "--overwrite"),
    ("calibrate", "fisher", "FINETUNED", "TEXTS", "OUT", "--overwrite"),
    ("calibrate", "graft", "BASE", "FINETUNED", "TEXTS", "OUT", "--overwrite"),
)


def outputs_on_inputs(bench: Bench, tries: int) -> Iterator[str]:
    """An output that is an input by another path: through links, hard links and second mounts, of folders and of files."""
    with tempfile.TemporaryDirectory(dir=bench.work.parent) as place, contextlib.ExitStack() as mounts:
        names = _names_of_inputs(Path(place), bench, mounts)
        before = {path: path.lstat().st_ino for path in Path(place).rglob("*") if path.is_file()}
        content = state(Path(place))
        for number in range(tries):
            command = _COMMANDS[number % len(_COMMANDS)]
            wants_folder = command[:1] == ("repair",) and "--html" not in command
            out = bench.chance.choice(names[wants_folder])
            words = {"OUT": str(out), "REPAIRED": str(bench.out)} | {
                name: str(Path(place) / name.lower()) for name in ("BASE", "FINETUNED", "TEXTS")
            }
            code, said = _run([words.get(word, word) for word in command])
            fault = f"{command[0]} {out}: exit {code}, {said!r}" if code != 1 or said.count("\n") != 1 else ""
            same = before == {path: path.lstat().st_ino for path in Path(place).rglob("*") if path.is_file()}
            if not same or (number % 50 == 49 and state(Path(place)) != content):
                fault = f"{command[0]} {out}: an input was replaced"
            left = [path.name for path in bench.work.iterdir()]
            yield fault or (f"left behind: {left}" if left else "")
        if state(Path(place)) != content:
            yield "an input has changed"


def _names_of_inputs(place: Path, bench: Bench, mounts: contextlib.ExitStack) -> dict[bool, list[Path]]:
    """Make both models as snapshots of the hub, and give every other name of them: of files, and (under True) of folders."""
    files: list[Path] = []
    folders: list[Path] = []
    (place / "texts").write_text('{"text": "a b c"}\n')
    os.link(place / "texts", place / "twin-of-texts")
    (place / "to-texts").symlink_to("texts")
    for side in (bench.base, bench.finetuned):
        model = place / f"models--org--{side.name}"
        snapshot, blobs = model / "snapshots" / "rev", model / "blobs"
        snapshot.mkdir(parents=True)
        blobs.mkdir()
        for file in side.iterdir():
            shutil.copyfile(file, blobs / f"{file.name}-blob")
            (snapshot / file.name).symlink_to(f"../../blobs/{file.name}-blob")
        (place / side.name).symlink_to(snapshot)
        (model / "mounted").mkdir()
        subprocess.run(["mount", "--bind", model / "snapshots", model / "mounted"], check=True)
        mounts.callback(_unmount, model / "mounted")
        (model / "twins").mkdir()
        for blob in blobs.iterdir():
            os.link(blob, model / "twins" / blob.name)
        (model / "to-blobs").symlink_to("blobs")
        files += [*snapshot.iterdir(), *blobs.iterdir(), *(model / "twins").iterdir(), *(model / "to-blobs").iterdir()]
        files += [*(model / "mounted" / "rev").iterdir(), snapshot / "new", place / side.name / "new"]
        folders += [
            snapshot,
            blobs,
            model,
            snapshot / "new",
            model / "mounted" / "rev",
            model / "twins",
            place / side.name,
        ]
        folders += [model / "mounted" / "rev" / "new", model / "snapshots"]
    return {False: files, True: folders}


def _unmount(folder: Path) -> None:
    subprocess.run(["umount", folder], check=True)


def _run(arguments: list[str]) -> tuple[int, str]:
    """The command in this process: its exit code, and what it wrote to standard error."""
    said, before = io.StringIO(), sys.argv
    sys.argv = ["deltamend", *arguments, "--quiet"]
    code = 0
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            command_line()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0
    except Exception as error:
        return 99, f"{type(error).__name__}: {error}"
    finally:
        sys.argv = before
    return code, said.getvalue()


def odd_archives(bench: Bench, tries: int) -> Iterator[str]:
    """PyTorch files whose members lie in another order, twice, under other names or on top of each other."""
    path = bench.work / "pytorch_model.bin"
    for number in range(tries):
        chance = random.Random(bench.chance.random())
        generator = torch.Generator().manual_seed(number)
        # Often of one size, so that a storage that is taken for another is not found by its length.
        rows = [chance.randint(2, 9)] * 9 if chance.random() < 0.7 else [chance.randint(2, 9) for _ in range(9)]
        flat = torch.randn(7 * rows[8], generator=generator)
        tensors = {f"w{i}": torch.randn(rows[i], 7, generator=generator) for i in range(chance.randint(1, 6))}
        tensors |= {"part": flat[3:8], "whole": flat}
        path.write_bytes(_odd(tensors, chance))
        expected = {name: tensor.contiguous().numpy().tobytes() for name, tensor in tensors.items()}
        fault = ""
        try:
            content = path.read_bytes()
            found = {entry.name: content[entry.start : entry.stop] for entry in read_torch_header(path).entries}
            fault = "" if found == expected else "other bytes were read"
        except DeltamendError as error:
            fault = "" if str(error).isprintable() else f"not one line: {error!r}"
        except Exception as error:
            fault = f"{type(error).__name__}: {error}"
        path.unlink()
        yield fault


def _odd(tensors: dict[str, torch.Tensor], chance: random.Random) -> bytes:
    written = io.BytesIO()
    torch.save(tensors, written)
    with zipfile.ZipFile(written) as archive:
        members = [(member.filename, archive.read(member)) for member in archive.infolist()]
    chance.shuffle(members)
    changes: tuple[Callable[[], object], ...] = (
        lambda: members.append(chance.choice(members)),
        lambda: members.append((f"archive/data/{chance.randrange(20)}", chance.randbytes(300))),
        lambda: members.append(("archive/byteorder", chance.choice((b"big", b"little", b"little" * 9, b"")))),
        lambda: members.append(("archive/.storage_alignment", chance.choice((b"0", b"-1", b"64", b"x" * 99)))),
        lambda: members.append((f"{chance.randrange(9)}/data.pkl", members[0][1])),
        lambda: members.insert(0, ("notes/read-me", chance.randbytes(chance.randrange(3000)))),
        lambda: members.pop(chance.randrange(len(members))),
    )
    for _ in range(chance.choice((0, 1, 1, 2))):
        chance.choice(changes)()
    out = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w") as archive:
        warnings.simplefilter("ignore")  # of a name that is there twice
        for name, content in members:
            archive.writestr(name, content)
    odd = bytearray(out.getvalue())
    if chance.random() < 0.3:  # the directory places a member where another one is
        entries = [at for at in range(len(odd)) if odd.startswith(b"PK\x01\x02", at)]
        one, other = chance.choice(entries), chance.choice(entries)
        odd[one + 42 : one + 46] = odd[other + 42 : other + 46]
    return bytes(odd)


def damaged_cache(bench: Bench, tries: int) -> Iterator[str]:
    """Entries of the cache, unpacked models and activations in turn, with a bit flipped, cut off, or with files gone or added."""
    folder, file = bench.work / "unpacked", bench.work / "activations.safetensors"

    def make(part: Path) -> None:
        (part / "model.safetensors").write_bytes(np.random.default_rng(0).bytes(5000))
        (part / "config.json").write_text('{"model_type": "llama"}')

    rng = np.random.default_rng(1)
    tensors = {"a.weight": rng.standard_normal((5, 9)), f"a.weight{EIGENVALUES}": rng.random(5)}
    stored = {name: torch.from_numpy(values).float() for name, values in tensors.items()}
    save_file(stored, file, metadata=described({"b.weight": "a.weight"}, stored))
    whole = file.read_bytes()
    for number in range(tries):
        damaged = checked_folder(folder, make)
        original = state(damaged)
        if number % 2:
            _damage(bench.chance.choice(sorted(damaged.iterdir())), bench.chance, others=True)
            yield "" if state(checked_folder(folder, make)) == original else "a damaged folder is used"
            continue
        file.write_bytes(whole)
        _damage(file, bench.chance, others=False)
        yield "" if not is_whole(file) or _used(file) == _used_of(whole, file) else "damaged activations are used"
    shutil.rmtree(folder)
    file.unlink()


def _used(file: Path) -> object:
    """What a method takes from an activations file: names, shapes and values, and which weights share their input."""
    header, content = read_header(file), file.read_bytes()
    values = {(one.name, one.dtype, one.shape): content[one.start : one.stop] for one in header.entries}
    return values, header.metadata.get("same_input")


def _used_of(whole: bytes, file: Path) -> object:
    beside = file.with_name("whole")
    beside.write_bytes(whole)
    found = _used(beside)
    beside.unlink()
    return found


def _damage(file: Path, chance: random.Random, *, others: bool) -> None:
    content = bytearray(file.read_bytes() or b"nothing")
    kind = chance.randrange(5 if others else 2)
    if kind == 0:
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        file.write_bytes(content)
    elif kind == 1:
        file.write_bytes(content[: chance.randrange(len(content))])
    elif kind == 2:
        file.unlink()
    elif kind == 3:
        file.with_name(f"added-{chance.randrange(99)}").write_bytes(bytes(content))
    else:
        file.rename(file.with_name("other-name"))


def links_in_study_folders(bench: Bench, tries: int) -> Iterator[str]:
    """A study's folder of which something is a link, and cells whose names could be one file's."""
    precious, out = bench.work / "precious", bench.work / "study"
    for _ in range(tries):
        (precious / ".x.part").mkdir(parents=True)
        (precious / "file").write_text("mine")
        before = state(precious)
        inner = bench.chance.choice(("", "", "/inner", "/inner/.x.part", "/.x.part", "/a__b.json.xz"))
        place = (
            out / f"{bench.chance.choice((*FOLDERS, '.lock'))}{inner}" if bench.chance.random() < 0.8 else out / ".lock"
        )
        place.parent.mkdir(parents=True)
        target = bench.chance.choice((precious, precious / "file", precious / ".x.part", precious / "gone"))
        place.symlink_to(target)
        fault = _refused_by_study(out)
        if state(precious) != before or not (precious / ".x.part").is_dir():
            fault = f"{place.relative_to(out)}: what it leads to was changed"
        shutil.rmtree(precious)
        shutil.rmtree(out)
        pieces = ["".join(bench.chance.choices("ab_.-", k=bench.chance.randint(1, 3))) for _ in range(6)]
        cells = {_cut(pieces, sorted(bench.chance.sample(range(1, 6), 3))) for _ in range(4)}
        if len({file_name(cell) for cell in cells}) < len(cells):
            fault = f"two of {sorted(cells)} are one file"
        yield fault


def _cut(pieces: list[str], at: list[int]) -> str:
    """The name of a cell whose parts are these pieces, several in one part with two underscores between them."""
    spans = itertools.pairwise([0, *at, len(pieces)])
    return "/".join("__".join(pieces[start:stop]) for start, stop in spans)


def _refused_by_study(out: Path) -> str:
    try:
        with alone_in(out):
            return "the study goes on"
    except OutputError as error:
        return "" if str(error).isprintable() else f"not one line: {error!r}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def foreign_work_folders(bench: Bench, tries: int) -> Iterator[str]:
    """Something in the place of the work folder or of what lies in it that no run made, under a new run and a resumed one."""
    precious = bench.work.parent / "precious"
    for number in range(tries):
        (precious / "out").mkdir(parents=True)
        (precious / "out" / "thesis").write_text("mine")
        (precious / "journal.jsonl").write_text('{"key": "x"}\n')
        before = state(precious)
        name = bench.chance.choice(
            ("", "", "out", "parts", "replaced", "inputs", "exchanging", "journal.jsonl", "notes")
        )
        place = bench.partial / name
        if name:
            bench.partial.mkdir()
            if bench.chance.random() < 0.7 and name != "journal.jsonl":
                (bench.partial / "journal.jsonl").write_text('{"key": "x"}\n')
        kinds: tuple[Callable[[], object], ...] = (
            lambda place=place: place.symlink_to(precious),  # type: ignore[misc]
            lambda place=place: place.symlink_to(precious / "journal.jsonl"),  # type: ignore[misc]
            lambda place=place: place.symlink_to(precious / "gone"),  # type: ignore[misc]
            lambda place=place: os.link(precious / "journal.jsonl", place),  # type: ignore[misc]
            lambda place=place: os.mkfifo(place),  # type: ignore[misc]
        )
        bench.chance.choice(kinds)()
        fault = ""
        try:
            deltamend.repair(bench.base, bench.finetuned, bench.out, method="none", resume=bool(number % 2))
            fault = f"{name or 'the work folder'}: the run goes on"
        except DeltamendError as error:
            fault = "" if str(error).isprintable() else f"not one line: {error!r}"
        except Exception as error:
            fault = f"{type(error).__name__}: {error}"
        if state(precious) != before or bench.out.exists():
            fault = f"{name or 'the work folder'}: what it leads to was changed"
        shutil.rmtree(precious)
        if bench.partial.is_symlink() or not bench.partial.is_dir():
            bench.partial.unlink()
        yield fault
