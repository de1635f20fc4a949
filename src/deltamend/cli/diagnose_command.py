"""`deltamend diagnose`: what the update looks like, before a threshold is trusted."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table

import deltamend
from deltamend.cli.options import given_options, with_options
from deltamend.cli.terminal import progress_bar
from deltamend.diagnosis.groups import by_layer, grouped
from deltamend.diagnosis.records import Diagnosis, Group, MatrixDiagnosis
from deltamend.machine.atomic import write_whole
from deltamend.repairing.options import PairOptions
from deltamend.report.diagnosis_page import diagnosis_csv, percent, render_diagnosis_page

_BARS = "▁▂▃▄▅▆▇█"
_FULL_KS = 0.4


@with_options(PairOptions)
def diagnose(
    base: Annotated[str, typer.Argument(help="The checkpoint that fine-tuning started from: a folder or a hub id.")],
    finetuned: Annotated[
        str, typer.Argument(help="Its fine-tuned descendant; MODEL+ADAPTER for a model with a LoRA adapter.")
    ],
    out_dtype: Annotated[
        str | None,
        typer.Option(
            help="Data type that a repair would write, whose rounding is predicted: bf16, fp16 or fp32; by default that of FINETUNED."
        ),
    ] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write an HTML page with plots.")] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write every number as JSON; - prints it.")] = None,
    csv: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a CSV file with a line for each matrix.")
    ] = None,
    values: Annotated[bool, typer.Option("--values", help="Include every singular value in the JSON.")] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Number of matrices worked on at a time; by default one for each core.")
    ] = None,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print errors only.")] = False,
    **chosen: Any,
) -> None:
    """Say what the update looks like, and whether a spectral threshold can be trusted on it. Nothing is repaired."""
    with progress_bar(quiet, "diagnosing") as progress:
        found = deltamend.diagnose(
            base,
            finetuned,
            out_dtype=out_dtype,
            values=values,
            workers=workers,
            progress=progress,
            **given_options(chosen),
        )
    printed = json is not None and str(json) == "-"
    if printed:
        typer.echo(found.model_dump_json(indent=1))
    elif json is not None:
        write_whole(json, found.model_dump_json(indent=1) + "\n")
    for path, text in ((csv, diagnosis_csv), (html, render_diagnosis_page)):
        if path is not None:
            write_whole(path, text(found))
    _print(Console(quiet=quiet or printed, highlight=False, markup=False, emoji=False), found, (base, finetuned))


def _print(console: Console, found: Diagnosis, folders: tuple[str, str]) -> None:
    kinds = grouped(found.matrices, lambda matrix: matrix.kind)
    console.print(_table("kind", kinds))
    layers = by_layer(found.matrices)
    if layers:
        console.print(_table("layer", layers))
        console.print(
            f"KS, the distance to noise, from the first layer to the last: {_BARS[0]} 0, {_BARS[-1]} {_FULL_KS} or more"
        )
    for group, matrices in kinds:
        if trend := "".join(_level(layer.ks) for layer, _ in by_layer(matrices)):
            console.print(f"  {group.name:<9} {trend}")
    console.print(f"\nverdict: {found.verdict}", style="bold")
    for sentence in found.sentences:
        console.print(f"  {sentence}", soft_wrap=True)
    for note in found.notes:
        console.print(f"  note: {note}", soft_wrap=True)
    if found.commands:
        console.print("next:")
    names = {"BASE": shlex.quote(folders[0]), "FINETUNED": shlex.quote(folders[1])}
    for command in found.commands:
        console.print(f"  {' '.join(names.get(word, word) for word in command.split())}", soft_wrap=True)


def _table(key: str, groups: Sequence[tuple[Group, list[MatrixDiagnosis]]]) -> Table:
    heads = ("n", "rank", "energy", "round", "KS")
    table = Table(
        Column(key, no_wrap=True),
        *(Column(head, justify="right") for head in heads),
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("", no_wrap=True)
    table.add_column("verdict of most", no_wrap=True)
    for group, _ in groups:
        ks = "–" if group.ks is None else f"{group.ks:.3f}"
        shares = [percent(share) for share in (group.rank, group.energy, group.rounding)]
        table.add_row(group.name, str(group.matrices), *shares, ks, _bar(group.ks), group.verdict)
    return table


def _level(ks: float | None) -> str:
    return " " if ks is None else _BARS[min(len(_BARS) - 1, int(ks / _FULL_KS * len(_BARS)))]


def _bar(ks: float | None, width: int = 8) -> str:
    return "" if ks is None else "█" * max(1, round(min(1.0, ks / _FULL_KS) * width))
