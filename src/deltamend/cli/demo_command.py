"""`deltamend demo`: damage, repair and measurement of a small real model, from start to end."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", help="Use a two-layer toy model instead of a real one; takes one minute instead of ten."
        ),
    ] = False,
    cache: Annotated[
        Path | None,
        typer.Option(help="Folder where models are kept; by default $DELTAMEND_CACHE, or the user's cache folder."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results; by default a folder in demo-output.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the sums, of their order and of the toy model's weights.")] = 0,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Fine-tune again, even if the cache holds this run's fine-tuned model.")
    ] = False,
) -> None:
    """Damage a small real model by fine-tuning, repair it, and show what came back."""
    # Late, because these import torch, and `deltamend --help` should not wait for it.
    from deltamend.cli.terminal import PlainConsole
    from deltamend.demo.present_results import headline_of, next_command, results_table, write_page, write_record
    from deltamend.demo.run import run_demo
    from deltamend.demo.settings import QUICK, REAL
    from deltamend.machine.cache import default_cache_dir

    settings = QUICK if quick else REAL
    folder = out or Path("demo-output") / settings.name
    console = PlainConsole()
    result = run_demo(settings, cache=cache or default_cache_dir(), out=folder, seed=seed, fresh=fresh, console=console)
    record, page = write_record(result), write_page(result)
    console.print(results_table(result))
    console.print(headline_of(result), style="bold")
    console.print(f"numbers: {record}", soft_wrap=True)
    console.print(f"page:    {page}", soft_wrap=True)
    console.print("next, what a repair of this pair would do to every tensor, with nothing written:")
    console.print(f"    {next_command(result)}", soft_wrap=True)
