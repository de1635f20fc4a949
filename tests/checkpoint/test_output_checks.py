"""An output is refused where writing it would remove what is read, by whatever path the two are named."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from safetensors.torch import save_file

import deltamend
from deltamend.checkpoint.output_checks import check_output, check_output_file, check_output_files, refuse_inside
from deltamend.cli.commands import command_line
from deltamend.errors import OutputError
from tests.conftest import llama, save_pair
from tests.reference import load


@pytest.mark.parametrize("what", ["mask", "gguf"])
def test_overwrite_never_removes_what_is_read(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = save_pair(llama(torch.float32), tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    if what == "mask":
        masks = {name: torch.ones_like(t, dtype=torch.uint8) for name, t in load(pair.base).items() if t.ndim == 2}
        save_file(masks, out / "mask")
        given: dict[str, Any] = {"method": "graft", "parameters": {"mask": str(out / "mask")}}
        base = pair.base
    else:
        base, given = out / "base.gguf", {}
        base.write_bytes(b"GGUF")
        monkeypatch.setattr("deltamend.inputs.gguf_file.unpacked", lambda _path: pair.base)
    with pytest.raises(deltamend.OutputError, match="OUT contains the input"):
        deltamend.repair(base, pair.finetuned, out, overwrite=True, **given)
    assert len(list(out.iterdir())) == 1


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """A snapshot as the hub's cache has it: its files are links to blobs. Beside it other names of the same places."""
    (tmp_path / "hub" / "blobs").mkdir(parents=True)
    snapshot = tmp_path / "hub" / "snapshots" / "rev"
    (snapshot / "more").mkdir(parents=True)
    (tmp_path / "hub" / "blobs" / "weights").write_text("weights")
    (tmp_path / "hub" / "blobs" / "tokens").write_text("tokens")
    (snapshot / "model.safetensors").symlink_to("../../blobs/weights")
    (snapshot / "more" / "tokens").symlink_to("../../../blobs/tokens")
    (snapshot / "config.json").write_text("{}")
    (tmp_path / "to-snapshot").symlink_to(snapshot)
    (tmp_path / "to-weights").symlink_to(tmp_path / "hub" / "blobs" / "weights")
    os.link(tmp_path / "hub" / "blobs" / "weights", tmp_path / "hard-link-of-weights")
    os.link(snapshot / "config.json", tmp_path / "hard-link-of-config")
    (tmp_path / "holds").mkdir()
    os.link(tmp_path / "hub" / "blobs" / "tokens", tmp_path / "holds" / "a-file")
    (tmp_path / "there").write_text("mine")
    return snapshot


FILES = (
    "hub/snapshots/rev/model.safetensors", "hub/snapshots/rev/new", "hub/snapshots/rev/more/tokens", "to-snapshot/new",
    "to-snapshot/config.json", "hub/blobs/weights", "hub/blobs/tokens", "to-weights", "hard-link-of-weights",
    "hard-link-of-config", "hub/snapshots/../snapshots/rev/config.json",
)  # fmt: skip
FOLDERS = (
    "hub/snapshots/rev",
    "hub/snapshots/rev/more",
    "hub/snapshots/rev/new",
    "hub/snapshots",
    "hub/blobs",
    "hub",
    "holds",
    "to-snapshot/x",
)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_an_input_by_any_name_is_refused(hub: Path, tmp_path: Path, name: str) -> None:
    for given in (hub, tmp_path / "to-snapshot", hub / "."):
        for overwrite in (False, True):
            with pytest.raises(OutputError, match="is or belongs to the input"):
                check_output_file(tmp_path / name, [given], overwrite=overwrite)
        with pytest.raises(OutputError, match="is or belongs to the input"):
            check_output_files({"html": None, "csv": tmp_path / name}, [tmp_path / "there", given])


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_that_touches_an_input_by_any_name_is_refused(hub: Path, tmp_path: Path, name: str) -> None:
    for given in (hub, tmp_path / "to-snapshot"):
        with pytest.raises(OutputError, match="the input"):
            check_output(tmp_path / name, [given], overwrite=True)


def test_an_input_that_is_one_file_is_found_by_its_inode(tmp_path: Path) -> None:
    (tmp_path / "texts").write_text("texts")
    (tmp_path / "link").symlink_to("texts")
    os.link(tmp_path / "texts", tmp_path / "twin")
    for one in ("texts", "link", "twin"):
        for other in ("texts", "link", "twin"):
            with pytest.raises(OutputError, match="is or belongs to the input"):
                check_output_file(tmp_path / one, [tmp_path / other], overwrite=True)


def test_what_touches_no_input_is_allowed(hub: Path, tmp_path: Path) -> None:
    check_output(tmp_path / "out", [hub, tmp_path / "gone"], overwrite=False)
    check_output_file(tmp_path / "new", [hub, tmp_path / "gone"], overwrite=False)
    check_output_files({"html": tmp_path / "there", "csv": tmp_path / "new"}, [hub])
    refuse_inside(tmp_path / "hub", [hub])
    for folder in (hub, hub / "more", tmp_path / "to-snapshot" / "new"):
        with pytest.raises(OutputError, match="the input"):
            refuse_inside(folder, [hub])


def test_a_file_is_replaced_only_where_that_is_asked_for_and_two_outputs_are_two_files(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("mine")
    (tmp_path / "link").symlink_to("there")
    check_output_file(tmp_path / "there", [], overwrite=True)
    with pytest.raises(OutputError, match="there: exists; give another name, or overwrite=True to replace it"):
        check_output_file(tmp_path / "there", [], overwrite=False)
    with pytest.raises(OutputError, match="is given to html and to csv; give two names"):
        check_output_files({"html": tmp_path / "there", "csv": tmp_path / "link"}, [])
    for name, said in (
        ("gone/new", "its folder does not exist"),
        (".", "exists and is not a file"),
        ("pipe", "exists and is"),
    ):
        if name == "pipe":
            os.mkfifo(tmp_path / name)
        with pytest.raises(OutputError, match=said):
            check_output_file(tmp_path / name, [], overwrite=True)


@pytest.mark.slow
def test_a_folder_of_many_levels_is_walked(tmp_path: Path) -> None:
    place = tmp_path / "model"
    place.mkdir()
    descriptor = os.open(place, os.O_RDONLY)
    for _ in range(1100):
        os.mkdir("a", dir_fd=descriptor)
        inner = os.open("a", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = inner
    os.close(descriptor)
    check_output_file(tmp_path / "page", [place], overwrite=False)
    subprocess.run(["rm", "-rf", place], check=True)  # Python's own functions cannot remove it


def _outputs() -> set[tuple[str, str]]:
    """Every option and argument of every command that names a file to write, by the name of the command."""
    found = set()

    def look(command: Any, path: tuple[str, ...]) -> None:
        for name, inner in getattr(command, "commands", {}).items():
            look(inner, (*path, name))
        for one in getattr(command, "params", ()):
            said = (getattr(one, "help", None) or "").lower()
            is_file = getattr(one, "metavar", None) in {None, "FILE"} and not getattr(one, "is_flag", False)
            if is_file and (
                said.startswith(("write", "json file to write", "safetensors file to write"))
                or "into this file" in said
            ):
                found.add((" ".join(path), one.opts[-1]))

    look(typer.main.get_command(command_line()), ())
    return found


COMMANDS: dict[tuple[str, str], list[str]] = {
    ("diagnose", "--html"): ["diagnose", "BASE", "FINETUNED", "--html", "OUT"],
    ("diagnose", "--json"): ["diagnose", "BASE", "FINETUNED", "--json", "OUT"],
    ("diagnose", "--csv"): ["diagnose", "BASE", "FINETUNED", "--csv", "OUT"],
    ("compare", "--csv"): ["compare", "BASE", "FINETUNED", "--csv", "OUT"],
    ("compare", "--html"): ["compare", "BASE", "FINETUNED", "--html", "OUT"],
    ("diff", "--csv"): ["diff", "BASE", "FINETUNED", "--csv", "OUT"],
    ("repair", "--html"): ["repair", "BASE", "FINETUNED", "REPAIRED", "--html", "OUT"],
    ("evaluate", "--out"): ["evaluate", "BASE", "--task", "ITEMS", "--out", "OUT", "--overwrite"],
    ("tune", "--html"): ["tune", "BASE", "FINETUNED", "--task", "ITEMS", "--task", "MORE", "--target", "items", "--html", "OUT"],
    ("calibrate activations", "out"): ["calibrate", "activations", "BASE", "OUT", "--texts", "ITEMS", "--overwrite"],
    ("calibrate fisher", "out"): ["calibrate", "fisher", "BASE", "ITEMS", "OUT", "--overwrite"],
    ("calibrate graft", "out"): ["calibrate", "graft", "BASE", "FINETUNED", "ITEMS", "OUT", "--overwrite"],
    **{
        ("score", flag): ["score", "--base", "R1", "--finetuned", "R2", "--repaired", "x=R3", "--target", "a", flag, "OUT"]
        for flag in ("--html", "--markdown", "--latex", "--csv")
    },
}  # fmt: skip


def test_every_output_of_every_command_is_in_the_table() -> None:
    assert {one for one in _outputs() if one[0] != "study"} == set(COMMANDS)


@pytest.mark.slow
@pytest.mark.parametrize("command", sorted(COMMANDS), ids=" ".join)
def test_no_command_writes_over_what_it_reads(
    command: tuple[str, str], llama_pair: Any, tmp_path: Path, deltamend_cli: Callable[..., Any]
) -> None:
    files = {"ITEMS": "items.jsonl", "MORE": "more.jsonl", "R1": "1.json", "R2": "2.json", "R3": "3.json"}
    for name in files.values():
        (tmp_path / name).write_text('{"question": "a", "answers": ["b"], "text": "a b c"}\n')
    places = {"BASE": llama_pair.base, "FINETUNED": llama_pair.finetuned, "REPAIRED": tmp_path / "repaired"}
    places |= {name: tmp_path / file for name, file in files.items()}
    before = {path: path.read_bytes() for path in tmp_path.glob("*.json*")}
    weights = {path: path.read_bytes() for side in ("BASE", "FINETUNED") for path in places[side].glob("*.*")}
    words = COMMANDS[command]
    for read in [
        name for name in (*places, "R1", "R2", "R3") if name != "REPAIRED" and any(name in word for word in words)
    ]:
        target = places[read] / "model.safetensors" if read in {"BASE", "FINETUNED"} else places[read]
        (tmp_path / "link").unlink(missing_ok=True)
        (tmp_path / "link").symlink_to(target)
        for out in (target, tmp_path / "link"):
            given = [str({**places, "OUT": out}.get(word, word)).replace("x=R3", f"x={places['R3']}") for word in words]
            printed = deltamend_cli(*given)
            assert (printed.code, printed.err.count("\n")) == (1, 1), printed
            assert f"{out}: is or belongs to the input" in printed.err
    assert before == {path: path.read_bytes() for path in before}
    assert weights == {path: path.read_bytes() for path in weights}
