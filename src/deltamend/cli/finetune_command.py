"""`deltamend finetune`: fine-tune a model by a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

import deltamend
from deltamend.cli.options import parameters_of
from deltamend.cli.terminal import echo, echo_json, progress_bar

EXAMPLES = """\b
Examples:
  deltamend finetune BASE --data chats.jsonl OUT
      train all weights, and do nothing against forgetting
  deltamend finetune BASE --data chats.jsonl OUT --recipe replay --old old.jsonl
      mix old examples in
  deltamend finetune BASE --data chats.jsonl OUT --recipe ewc --set strength=100
      hold back the weights that matter to BASE, by texts that it writes itself
"""
_DType = Literal["float32", "bfloat16"]


def finetune(
    base: Annotated[
        str, typer.Argument(metavar="BASE", help="The model to start from: a folder, a hub id or a GGUF file.")
    ],
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="The folder to write. It appears once it is complete, or not at all.")
    ],
    data: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help='JSONL file of {"prompt": …, "completion": …}, as text or as messages, or of {"messages": […]}, whose last message is learnt.',
        ),
    ],
    recipe: Annotated[
        str, typer.Option(metavar="NAME", help="How to train; `deltamend recipes` lists them.")
    ] = "plain",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting of the recipe. May be given several times."),
    ] = None,
    old: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Examples of what BASE is not to forget, in the same form, for recipes that want some; by default BASE writes texts "
            "itself. May be given several times, once for each old task.",
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Optimiser steps; by default one pass over the data.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Examples in each optimiser step.")] = 16,
    micro_batch: Annotated[
        int | None, typer.Option(min=1, help="Examples at a time; by default all of a step's. Fewer need less memory.")
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="Peak learning rate; by default 2e-5, or 2e-4 where an adapter is trained.")
    ] = None,
    warmup: Annotated[int, typer.Option(min=0, help="Optimiser steps of warm-up.")] = 10,
    max_length: Annotated[int, typer.Option(min=8, help="Longest example, in tokens; longer ones are cut.")] = 512,
    lora_rank: Annotated[
        int | None, typer.Option(min=1, help="Train a LoRA adapter of this rank on all linear layers, and merge it.")
    ] = None,
    weights: Annotated[
        _DType, typer.Option(help="Dtype in which weights and optimiser are held, and OUT is written.")
    ] = "float32",
    compute: Annotated[
        _DType | None,
        typer.Option(
            help="Dtype of the arithmetic; by default bfloat16 where the GPU or the processor computes it fast, otherwise float32."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the order of the examples, and of whatever is drawn.")] = 0,
    checkpoint_every: Annotated[
        int, typer.Option(min=1, help="Steps between two states from which --resume can go on.")
    ] = 200,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run of the same command.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace OUT if it exists, once the new model is complete.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the content of finetune.json.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print errors only.")] = False,
) -> None:
    """Fine-tune BASE on the examples of a file by a training recipe, and write the model to OUT."""
    with progress_bar(quiet, "fine-tuning") as progress:
        record = deltamend.finetune(
            base,
            data,
            out,
            recipe=recipe,
            settings=parameters_of(settings or ()),
            old=old or (),
            steps=steps,
            batch=batch,
            micro_batch=micro_batch,
            lr=lr,
            warmup=warmup,
            max_length=max_length,
            lora_rank=lora_rank,
            weights=weights,
            compute=compute,
            seed=seed,
            checkpoint_every=checkpoint_every,
            resume=resume,
            overwrite=overwrite,
            progress=progress,
        )
    if as_json:
        echo_json(record.model_dump_json(indent=1))
    elif not quiet:
        echo(
            f"{record.regime['steps']} steps by {record.recipe}: loss {record.first_loss:.3f} at first, {record.last_loss:.3f} at last"
        )
        echo(f"wrote {out}; next: deltamend diagnose {base} {out}")
