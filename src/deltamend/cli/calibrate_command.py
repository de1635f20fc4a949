"""`deltamend calibrate`: what null-space, fisher and graft want to know from a model or from data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deltamend.cli.terminal import progress_bar

calibrate = typer.Typer(
    help="Compute what the methods null-space, fisher and graft want to know; holds whole models in memory.",
    no_args_is_help=True,
)

_TEXTS = typer.Argument(help='JSONL: {"text": …}, or {"prompt": …, "response": …} where the response counts.')
_OUT = typer.Argument(help="Safetensors file to write.")
_CHAT = typer.Option("--chat", help="Prompts are messages: put them through the model's chat template.")
_MAX_TOKENS = typer.Option(min=2, help="Longer texts are cut.")
_OVERWRITE = typer.Option("--overwrite", help="Replace OUT.")
_QUIET = typer.Option("-q", "--quiet", help="Print errors only.")


@calibrate.command()
def activations(
    model: Annotated[Path, typer.Argument(help="Folder of the checkpoint fine-tuning started from.")],
    out: Annotated[Path, _OUT],
    texts: Annotated[
        Path | None, typer.Option(help="JSONL of texts to read; without it the model writes its own.")
    ] = None,
    chat: Annotated[bool, _CHAT] = False,
    samples: Annotated[int, typer.Option(min=1, help="Texts that the model writes.")] = 48,
    tokens: Annotated[int, typer.Option(min=2, help="Of each text, at most.")] = 96,
    seed: Annotated[int, typer.Option(min=0, help="Of what the model writes.")] = 0,
    overwrite: Annotated[bool, _OVERWRITE] = False,
    quiet: Annotated[bool, _QUIET] = False,
) -> None:
    """What MODEL's layers are given in its own texts, for `--method null-space`; no data are needed."""
    from deltamend.calibration.activations import write_activations  # torch

    with progress_bar(quiet, "reading") as progress:
        count = write_activations(
            model,
            out,
            texts=texts,
            chat=chat,
            samples=samples,
            tokens=tokens,
            seed=seed,
            overwrite=overwrite,
            progress=progress,
        )
    if not quiet:
        next_ = f"deltamend repair … --method null-space --set activations={out}"
        typer.echo(f"wrote {out} from {count} tokens; next: {next_}")


@calibrate.command()
def fisher(
    model: Annotated[Path, typer.Argument(help="Folder of the checkpoint.")],
    texts: Annotated[Path, _TEXTS],
    out: Annotated[Path, _OUT],
    given_labels: Annotated[
        bool, typer.Option("--given-labels", help="The texts' own tokens, not sampled ones: the empirical Fisher.")
    ] = False,
    chat: Annotated[bool, _CHAT] = False,
    max_tokens: Annotated[int, _MAX_TOKENS] = 512,
    seed: Annotated[int, typer.Option(min=0, help="Of the sampled tokens.")] = 0,
    overwrite: Annotated[bool, _OVERWRITE] = False,
    quiet: Annotated[bool, _QUIET] = False,
) -> None:
    """Mean squared gradients of MODEL, for `--method fisher`."""
    from deltamend.calibration.fisher import write_fisher  # torch

    with progress_bar(quiet, "computing") as progress:
        count = write_fisher(
            model,
            texts,
            out,
            labels="given" if given_labels else "sampled",
            chat=chat,
            max_tokens=max_tokens,
            seed=seed,
            overwrite=overwrite,
            progress=progress,
        )
    if not quiet:
        typer.echo(f"wrote {out} from {count} texts; next: deltamend repair … --method fisher --set fisher={out}")


@calibrate.command()
def graft(
    base: Annotated[Path, typer.Argument(help="Folder of the checkpoint fine-tuning started from.")],
    finetuned: Annotated[Path, typer.Argument(help="Folder of its fine-tuned descendant.")],
    texts: Annotated[Path, _TEXTS],
    out: Annotated[Path, _OUT],
    density: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of the entries that is grafted.")] = 0.01,
    steps: Annotated[int, typer.Option(min=1, help="Gradient steps.")] = 50,
    batch: Annotated[int, typer.Option(min=1, help="Texts a step.")] = 8,
    rate: Annotated[float, typer.Option(min=0.0, help="How far a step goes.")] = 1.0,
    chat: Annotated[bool, _CHAT] = False,
    max_tokens: Annotated[int, _MAX_TOKENS] = 512,
    overwrite: Annotated[bool, _OVERWRITE] = False,
    quiet: Annotated[bool, _QUIET] = False,
) -> None:
    """A mask of the entries the task needs, for `--method graft`."""
    from deltamend.calibration.graft_mask import write_graft_mask  # torch

    with progress_bar(quiet, "learning") as progress:
        before, after = write_graft_mask(
            base,
            finetuned,
            texts,
            out,
            density=density,
            steps=steps,
            batch=batch,
            rate=rate,
            chat=chat,
            max_tokens=max_tokens,
            overwrite=overwrite,
            progress=progress,
        )
    if not quiet:
        typer.echo(
            f"loss on the texts: {before:.4f} nats a token with the largest entries, {after:.4f} with the mask learnt"
        )
        typer.echo(f"wrote {out}; next: deltamend repair … --method graft --set mask={out}")
