"""`deltamend calibrate`: compute the files that the methods null-space, fisher and graft need."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deltamend.cli.terminal import echo, progress_bar

calibrate = typer.Typer(
    help="Compute the files that the methods null-space, fisher and graft need. Loads whole models into memory.",
    no_args_is_help=True,
)

_TEXTS = typer.Argument(help='JSONL file of texts: {"text": …} or {"prompt": …, "response": …} on each line.')
_OUT = typer.Argument(help="Safetensors file to write.")
_CHAT = typer.Option("--chat", help="Put each prompt through the chat template of the model, as the message of a user.")
_MAX_TOKENS = typer.Option(min=2, help="Largest number of tokens in a text; longer texts are cut.")
_OVERWRITE = typer.Option("--overwrite", help="Replace OUT if it exists.")
_QUIET = typer.Option("-q", "--quiet", help="Print errors only.")


@calibrate.command()
def activations(
    model: Annotated[Path, typer.Argument(help="Folder of the base model.")],
    out: Annotated[Path, _OUT],
    texts: Annotated[
        Path | None, typer.Option(help="JSONL file of texts. By default the model writes its own texts.")
    ] = None,
    chat: Annotated[bool, _CHAT] = False,
    samples: Annotated[int, typer.Option(min=1, help="Number of texts that the model writes.")] = 48,
    tokens: Annotated[int, typer.Option(min=2, help="Largest number of tokens in a text.")] = 96,
    seed: Annotated[int, typer.Option(min=0, help="Seed for the texts that the model writes.")] = 0,
    overwrite: Annotated[bool, _OVERWRITE] = False,
    quiet: Annotated[bool, _QUIET] = False,
) -> None:
    """Compute the directions of every layer's inputs on texts that MODEL writes itself, for `--method null-space`."""
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
        echo(f"wrote {out} from {count} tokens; next: {next_}")


@calibrate.command()
def fisher(
    model: Annotated[Path, typer.Argument(help="Folder of the model, fine-tuned or base.")],
    texts: Annotated[Path, _TEXTS],
    out: Annotated[Path, _OUT],
    given_labels: Annotated[
        bool,
        typer.Option(
            "--given-labels",
            help="Take the tokens of the texts, not tokens sampled from the model: the empirical Fisher information.",
        ),
    ] = False,
    chat: Annotated[bool, _CHAT] = False,
    max_tokens: Annotated[int, _MAX_TOKENS] = 512,
    seed: Annotated[int, typer.Option(min=0, help="Seed for the sampled tokens.")] = 0,
    overwrite: Annotated[bool, _OVERWRITE] = False,
    quiet: Annotated[bool, _QUIET] = False,
) -> None:
    """Compute the mean squared gradients of MODEL on TEXTS (Fisher information), for `--method fisher`."""
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
        echo(f"wrote {out} from {count} texts; next: deltamend repair … --method fisher --set fisher={out}")


@calibrate.command()
def graft(
    base: Annotated[Path, typer.Argument(help="Folder of the base model.")],
    finetuned: Annotated[Path, typer.Argument(help="Folder of the fine-tuned model.")],
    texts: Annotated[Path, _TEXTS],
    out: Annotated[Path, _OUT],
    density: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of the entries that the mask selects.")
    ] = 0.01,
    steps: Annotated[int, typer.Option(min=1, help="Number of gradient steps.")] = 50,
    batch: Annotated[int, typer.Option(min=1, help="Number of texts in each step.")] = 8,
    rate: Annotated[float, typer.Option(min=0.0, help="Step size; it means the same for every model.")] = 1.0,
    chat: Annotated[bool, _CHAT] = False,
    max_tokens: Annotated[int, _MAX_TOKENS] = 512,
    overwrite: Annotated[bool, _OVERWRITE] = False,
    quiet: Annotated[bool, _QUIET] = False,
) -> None:
    """Learn which entries of the update the task of TEXTS needs, as a mask for `--method graft`."""
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
        echo(
            f"loss on the texts: {before:.4f} nats per token with the mask of the largest entries, {after:.4f} with the learnt mask"
        )
        echo(f"wrote {out}; next: deltamend repair … --method graft --set mask={out}")
