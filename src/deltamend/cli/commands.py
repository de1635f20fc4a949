"""The commands and what each is for. The module of a command is imported only where the command is run or described whole."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from importlib import import_module
from typing import Annotated, Any

import typer

SUMMARIES = {
    "repair": "Repair FINETUNED with the help of BASE, and write the result to OUT.",
    "verify": "Check every file and tensor of OUT against the hashes recorded in its deltamend.json.",
    "inspect": "List what is in a checkpoint, read from its headers alone.",
    "diff": "Compare two checkpoints tensor by tensor, and print the largest differences first.",
    "push": "Verify OUT and upload it to the Hugging Face hub. Without --yes, only show what would be uploaded.",
    "methods": "List the repair methods, or show one with its parameters.",
    "compare": "Compare what several methods keep of the same update. Nothing is written unless you ask for it.",
    "diagnose": "Measure what an update looks like, and judge whether a spectral threshold can be trusted on it. Nothing is repaired.",
    "calibrate": "Compute the files that the methods null-space, fisher and graft need. Loads whole models into memory.",
    "evaluate": "Ask MODEL the benchmarks of a suite, through lm-evaluation-harness, and write what every item scored.",
    "score": "Score repairs by how much damage they heal and how much of the target they retain.",
    "tune": "Search for the method and strength with the best combined score.",
    "finetune": "Fine-tune BASE on the examples of a file by a training recipe, and write the model to OUT.",
    "recipes": "List the training recipes, or show one with its settings.",
    "study": "Run a study, or what is left of it, and write its results into OUT/results.",
    "demo": "Damage a small real model by fine-tuning, repair it, and show what came back.",
}
"""What `deltamend --help` says of each command: the first paragraph of the command's own help."""
_GROUPS = ("methods", "calibrate", "recipes")
"""Those that have commands of their own."""


def command_line(wanted: Collection[str] = tuple(SUMMARIES)) -> typer.Typer:
    """The command line with all commands, of which those that are not wanted have a summary and nothing else.

    Args:
        wanted: names of the commands that may be run.
    """
    app = typer.Typer(
        name="deltamend",
        help="Repair a fine-tuned language model after the fact, from its base and fine-tuned checkpoints alone.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.callback()(_start)
    for name, summary in SUMMARIES.items():
        if name in wanted:
            _add(app, name)
        elif name in _GROUPS:
            group = typer.Typer(help=summary)
            group.callback()(_not_imported)
            app.add_typer(group, name=name)
        else:
            app.command(name, help=summary)(_not_imported)
    return app


def _add(app: typer.Typer, name: str) -> None:
    """Import a command and add it."""
    module: Any = import_module(f"deltamend.cli.{name}_command")
    command: typer.Typer | Callable[..., None] = getattr(module, name)
    if isinstance(command, typer.Typer):
        app.add_typer(command, name=name)
    else:
        app.command(name, epilog=getattr(module, "EXAMPLES", None))(command)


def wanted_by(arguments: Sequence[str]) -> Collection[str]:
    """The commands that these arguments of the program name, or all where a shell asks for completions."""
    if "_DELTAMEND_COMPLETE" in os.environ:
        return tuple(SUMMARIES)
    return [name for name in arguments if name in SUMMARIES][:1]


def _not_imported() -> None:
    raise AssertionError("a command that is not wanted was run")


def _print_version(asked: bool) -> None:
    if asked:
        from deltamend import __version__
        from deltamend.cli.terminal import echo

        echo(f"deltamend {__version__}")
        raise typer.Exit


def _start(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version of deltamend and exit.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    """Repair a fine-tuned language model after the fact, from its base and fine-tuned checkpoints alone."""
