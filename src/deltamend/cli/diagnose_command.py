"""`deltamend diagnose`: measure an update, and judge whether a spectral threshold can be trusted on it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Column

import deltamend
from deltamend.checkpoint.output_checks import check_output_files
from deltamend.cli.options import given_options, with_options
from deltamend.cli.terminal import PlainConsole, PlainTable, echo_json, progress_bar
from deltamend.diagnosis.groups import by_layer, grouped
from deltamend.diagnosis.records import Diagnosis, Group, MatrixDiagnosis
from deltamend.inputs.open_models import paths_of
from deltamend.machine.atomic import write_whole
from deltamend.repairing.options import PairOptions
from deltamend.report.diagnosis_page import diagnosis_csv, percent, render_diagnosis_page

EXAMPLES = """\b
Examples:
  deltamend diagnose BASE FINETUNED
  deltamend diagnose BASE FINETUNED --html update.html --include mlp
"""

_BARS = "▁▂▃▄▅▆▇█"
_FULL_KS = 0.4
"""The KS distance that a whole bar stands for."""


@with_options(PairOptions)
def diagnose(
    base: Annotated[
        str,
        typer.Argument(
            metavar="BASE",
            help="The checkpoint that fine-tuning started from: a folder, a hub id org/name@revision, or a GGUF file.",
        ),
    ],
    finetuned: Annotated[
        str,
        typer.Argument(
            metavar="FINETUNED",
            help="The fine-tuned checkpoint, likewise; or MODEL+ADAPTER for a model with a LoRA adapter.",
        ),
    ],
    out_dtype: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE",
            help="Predict the effect of rounding for a repair that writes this data type: bf16, fp16 or fp32; by default that "
            "of FINETUNED.",
        ),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write an HTML page with plots of every matrix.")
    ] = None,
    json: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write all numbers as JSON; - prints them instead of the tables."),
    ] = None,
    csv: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a CSV file with a line for each matrix.")
    ] = None,
    values: Annotated[bool, typer.Option("--values", help="Include all singular values in the JSON.")] = False,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="NUMBER",
            help="Number of matrices worked on at a time; by default one for each core. It does not change the result.",
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print errors only.")] = False,
    **chosen: Any,
) -> None:
    """Measure what an update looks like, and judge whether a spectral threshold can be trusted on it. Nothing is repaired.

    DG-Hard assumes that the update is a signal of low rank in random noise. The tables show, by kind of module and by layer: the
    number of matrices (n); the shares of the singular values (rank) and of the energy that DG-Hard would keep; the share of the
    noise that rounding of the stored data type explains (round); and the distance of the noise to the law of random matrices (KS).
    """
    printed = json is not None and str(json) == "-"
    files = {"html": html, "json": None if printed else json, "csv": csv}
    check_output_files(files, [*paths_of(base), *paths_of(finetuned)])
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
    if printed:
        echo_json(found.model_dump_json(indent=1))
    elif json is not None:
        write_whole(json, found.model_dump_json(indent=1) + "\n")
    for path, text in ((csv, diagnosis_csv), (html, render_diagnosis_page)):
        if path is not None:
            write_whole(path, text(found))
    _print(PlainConsole(quiet=quiet or printed), found, (base, finetuned))


def _print(console: PlainConsole, found: Diagnosis, folders: tuple[str, str]) -> None:
    kinds = grouped(found.matrices, lambda matrix: matrix.kind)
    console.print(_table("kind", kinds))
    layers = by_layer(found.matrices)
    if layers:
        console.print(_table("layer", layers))
        console.print(
            f"KS distance to the law of noise, from the first layer to the last ({_BARS[0]} is 0, {_BARS[-1]} is {_FULL_KS} or more):"
        )
    for group, matrices in kinds:
        if trend := "".join(_level(layer.ks) for layer, _ in by_layer(matrices)):
            console.print(f"  {group.name:<9} {trend}")
    console.print()
    console.print(f"verdict: {found.verdict}", style="bold")
    for sentence in found.sentences:
        console.print(f"  {sentence}", soft_wrap=True)
    for note in found.notes:
        console.print(f"  note: {note}", soft_wrap=True)
    if found.commands:
        console.print("commands to run next:")
    names = {"BASE": shlex.quote(folders[0]), "FINETUNED": shlex.quote(folders[1])}
    for command in found.commands:
        console.print(f"  {' '.join(names.get(word, word) for word in command.split())}", soft_wrap=True)


def _table(key: str, groups: Sequence[tuple[Group, list[MatrixDiagnosis]]]) -> PlainTable:
    heads = ("n", "rank", "energy", "round", "KS")
    table = PlainTable(
        Column(key, no_wrap=True),
        *(Column(head, justify="right") for head in heads),
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("", no_wrap=True)
    table.add_column("verdict on most entries", no_wrap=True)
    for group, _ in groups:
        ks = "–" if group.ks is None else f"{group.ks:.3f}"
        shares = [percent(share) for share in (group.rank, group.energy, group.rounding)]
        table.add_row(group.name, str(group.matrices), *shares, ks, _bar(group.ks), group.verdict)
    return table


def _level(ks: float | None) -> str:
    return " " if ks is None else _BARS[min(len(_BARS) - 1, int(ks / _FULL_KS * len(_BARS)))]


def _bar(ks: float | None, width: int = 8) -> str:
    return "" if ks is None else "█" * max(1, round(min(1.0, ks / _FULL_KS) * width))
