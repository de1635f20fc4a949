"""The demo from start to end: a base model, its damage by fine-tuning, repairs, and measurements of them all."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from deltamend._api import repair
from deltamend.checkpoint.file_names import MANIFEST_FILE
from deltamend.choosing.recommendation import recommend
from deltamend.demo.measurement import DemoExam, Measured, exam_length, measure
from deltamend.demo.probes import Probes, load_probes
from deltamend.demo.settings import REPAIRS, DemoSettings, RepairChoice
from deltamend.demo.sums_task import Problem, sums
from deltamend.demo.toy_model import PRETRAINING, build_toy, toy_folder
from deltamend.errors import CheckpointError
from deltamend.inputs.smollm2 import smollm2_folder, unpack_smollm2
from deltamend.language_models.loading import LoadedModel, load, quiet_transformers
from deltamend.language_models.training import chat_example, train
from deltamend.machine.atomic import publish
from deltamend.machine.digests import fingerprint
from deltamend.machine.threads import one_thread_each
from deltamend.repairing.options import AUTO, Recommendation
from deltamend.repairing.repair_report import RepairReport


@dataclass(frozen=True)
class RepairedModel:
    """One repair that was carried out: what was asked for, what `deltamend.repair` reported, what was measured."""

    choice: RepairChoice
    report: RepairReport
    measured: Measured


@dataclass(frozen=True)
class DemoResult:
    """All that a run found out; `seconds` holds the wall time of each step."""

    settings: DemoSettings
    seed: int
    out: Path
    base_folder: Path
    finetuned_folder: Path
    exam: DemoExam
    base: Measured
    finetuned: Measured
    repaired: tuple[RepairedModel, ...]
    seconds: dict[str, float]


@dataclass
class Steps:
    """Shows one progress bar a step, and keeps the wall time of each."""

    progress: Progress
    seconds: dict[str, float] = field(default_factory=dict)

    def reuse(self, label: str) -> None:
        """Show a step that the cache has made unnecessary; it gets no time."""
        self.progress.add_task(f"{label} (cached)", total=1, completed=1)

    @contextmanager
    def step(self, label: str, total: float) -> Iterator[Callable[[float], None]]:
        """A step of `total` units; the yielded function is told how many more are done."""
        task = self.progress.add_task(label, total=total)
        started = time.perf_counter()
        yield lambda done: self.progress.advance(task, done)
        self.progress.update(task, completed=total)
        self.seconds[label] = time.perf_counter() - started


def run_demo(settings: DemoSettings, *, cache: Path, out: Path, seed: int, fresh: bool, console: Console) -> DemoResult:
    """Run the demo; models go to `cache` and are reused, the repaired checkpoints go to `out`.

    Args:
        settings: the real demo or the quick one.
        cache: folder of the base and the fine-tuned model.
        out: folder of the repaired checkpoints, one subfolder a method.
        seed: fixes the problems, their order and the toy's weights.
        fresh: train again even where the cache holds the fine-tuned model of this seed and these settings.
        console: where the progress bars go.

    Raises:
        DeltamendError: a package is missing, or a repair failed.
    """
    probes = load_probes()
    train_part, held_out = sums(*settings.operands, held_out=settings.held_out, seed=seed)
    exam = DemoExam(problems=tuple(held_out), probes=probes, reply_tokens=settings.reply_tokens)
    with _progress(console) as progress, quiet_transformers():
        steps = Steps(progress)
        base = _base(settings, cache, probes, seed, steps)
        finetuned = _finetuned(settings, base, cache, train_part, seed, fresh, steps)
        advice = _advice(base, finetuned, cache, steps)
        reports = [_repaired(choice, advice, base, finetuned, out, steps) for choice in REPAIRS]
        folders = [base, finetuned, *(report.out for report in reports)]
        names = ["base", "fine-tuned", *(choice.label for choice in REPAIRS)]
        measured = _measured(dict(zip(names, folders, strict=True)), exam, steps)
    return DemoResult(
        settings=settings,
        seed=seed,
        out=out,
        base_folder=base,
        finetuned_folder=finetuned,
        exam=exam,
        base=measured[0],
        finetuned=measured[1],
        repaired=tuple(map(RepairedModel, REPAIRS, reports, measured[2:])),
        seconds=steps.seconds,
    )


def _base(settings: DemoSettings, cache: Path, probes: Probes, seed: int, steps: Steps) -> Path:
    folder = toy_folder(cache, probes, seed=seed) if settings.toy else smollm2_folder(cache)
    label = "Build the toy base" if settings.toy else "Unpack the base model"
    if folder.exists():
        steps.reuse(label)
    elif settings.toy:
        with steps.step(label, PRETRAINING.steps) as advance:
            build_toy(folder, probes, seed=seed, advance=lambda: advance(1))
    else:
        with steps.step(label, 1):
            unpack_smollm2(folder)
    return folder


def _finetuned(
    settings: DemoSettings, base: Path, cache: Path, problems: list[Problem], seed: int, fresh: bool, steps: Steps
) -> Path:
    """The damaged model: every weight fine-tuned on the narrow task, written in bf16 as most published models are."""
    recipe, label = settings.damage, "Damage it: fine-tune on sums"
    made_from = {"base": base.name, "recipe": recipe, "operands": settings.operands, "held_out": settings.held_out}
    folder = cache / f"finetuned-{settings.name}-{fingerprint({**made_from, 'seed': seed})}"
    if folder.exists() and not fresh:
        steps.reuse(label)
        return folder
    with steps.step(label, recipe.steps) as advance, publish(folder) as part:
        model, tokenizer = load(base)
        examples = [chat_example(tokenizer, p.question, p.answer) for p in problems[: recipe.steps * recipe.batch]]
        train(model, examples, recipe, seed=seed, advance=lambda: advance(1))
        model.bfloat16().save_pretrained(part)
        tokenizer.save_pretrained(part)
    return folder


def _advice(base: Path, finetuned: Path, cache: Path, steps: Steps) -> Recommendation:
    """What `--method auto` does: it reads both models, the base only once."""
    with steps.step("Read both models, for two-sided", 1.0) as advance:
        advice = recommend(base, finetuned, cache=cache, progress=_shares(advance))
    if advice.fallback:
        raise CheckpointError(f"{base}: {advice.reason}")
    return advice


def _repaired(
    choice: RepairChoice, advice: Recommendation, base: Path, finetuned: Path, out: Path, steps: Steps
) -> RepairReport:
    """Repair through the public function that `deltamend repair` calls; only an earlier result of its kind is replaced."""
    folder = out / choice.method
    asked = advice if choice.method == AUTO else Recommendation(choice.method, dict(choice.parameters), "finetuned", "")
    with steps.step(f"Repair with {choice.label}", 1.0) as advance:
        ours = (folder / MANIFEST_FILE).is_file()
        return repair(
            base,
            finetuned,
            folder,
            method=asked.method,
            parameters=asked.parameters,
            vectors=asked.vectors,
            overwrite=ours,
            progress=_shares(advance),
        )


def _shares(advance: Callable[[float], None]) -> Callable[[str, float], None]:
    """From "how much is done" to "how much more is done"."""
    done = 0.0

    def show(_name: str, share: float) -> None:
        nonlocal done
        advance(share - done)
        done = share

    return show


def _measured(models: dict[str, Path], exam: DemoExam, steps: Steps) -> list[Measured]:
    """Measure two models at a time, with one thread each: faster than one after the other, and calm on a busy machine.

    Models are loaded on this thread, and never while another is being measured: from_pretrained switches off and on again
    what the whole process uses to initialise weights, and a second one at the same time can come out random.
    """

    def one(name: str, loaded: LoadedModel) -> Measured:
        torch.set_num_threads(1)  # this thread's own setting
        with steps.step(f"Measure: {name}", exam_length(exam)) as advance:
            return measure(loaded, exam, advance)

    measured: list[Measured] = []
    names = list(models)
    with one_thread_each(), ThreadPoolExecutor(2) as pool:
        for pair in (names[start : start + 2] for start in range(0, len(names), 2)):
            measured += pool.map(one, pair, [load(models[name]) for name in pair])
    return measured


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:<30}"),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )
