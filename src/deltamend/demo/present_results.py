"""The results for people and for programs: the terminal's table, the HTML page, the JSON record."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shlex
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from deltamend.demo.measurement import CHAT, COMPLETION, KNOWLEDGE, LIKELIHOOD, TARGET, Measured, Measurement
from deltamend.demo.run import DemoResult, RepairedModel
from deltamend.demo.verdict_sentences import (
    RepairSummary,
    damaged_measures,
    headline,
    percent,
    sentences,
    summarise_repair,
)
from deltamend.machine.atomic import write_whole
from deltamend.report.demo_page import (
    DemoPage,
    MeasureCell,
    MeasureRow,
    Meter,
    RepairRow,
    RepairVerdict,
    SampleReplies,
    render_demo_page,
)

PAGE_FILE = "demo.html"
RECORD_FILE = "measurements.json"


@dataclass(frozen=True)
class MeasureWords:
    """How a measure is called and explained."""

    title: str
    explanation: str


MEASURES = {
    TARGET: MeasureWords("Target: sums", "Held-out sums answered with exactly the right digits."),
    CHAT: MeasureWords("Answers in words", "Prompts whose reply is language and not digits."),
    KNOWLEDGE: MeasureWords("Common knowledge", "Four choices; the likeliest is the answer. Chance is 25%."),
    COMPLETION: MeasureWords("Sentence completion", "Four choices; the likeliest is the answer. Chance is 25%."),
    LIKELIHOOD: MeasureWords(
        "Ordinary text, nats", "Nats a token on prose; lower is better. Bar: likelihood against the base."
    ),
}


def model_names(result: DemoResult) -> tuple[str, ...]:
    """The columns, left to right."""
    return ("Base", "Fine-tuned", *(repaired.choice.label for repaired in result.repaired))


def repair_summaries(result: DemoResult) -> list[RepairSummary]:
    """Each repair summed up."""
    return [
        summarise_repair(
            repaired.choice.label,
            result.base.estimates,
            result.finetuned.estimates,
            repaired.measured.estimates,
            kept_energy=repaired.report.kept_energy,
        )
        for repaired in result.repaired
    ]


def headline_of(result: DemoResult) -> str:
    """The result in one sentence."""
    return headline(repair_summaries(result))


def results_table(result: DemoResult) -> Table:
    """The measurements as a rich table for 80 columns, the 95% interval under each number."""
    table = Table(
        "",
        "n",
        *model_names(result),
        title=_title(result),
        caption="below each number: its 95% interval",
        box=SIMPLE_HEAD,
        collapse_padding=True,
    )
    for key, words in MEASURES.items():
        estimates = [measured.estimates[key] for measured in _all_measured(result)]
        cells = (Text.assemble(value_text(e), "\n", (interval_text(e), "dim")) for e in estimates)
        table.add_row(words.title, f"{estimates[0].n:,}", *cells)
    return table


def write_page(result: DemoResult) -> Path:
    """Write the HTML page into the output folder; returns its path."""
    path = result.out / PAGE_FILE
    write_whole(path, render_demo_page(build_page(result)))
    return path


def write_record(result: DemoResult) -> Path:
    """Write every number and every reply as JSON next to the page; returns its path."""
    path = result.out / RECORD_FILE
    write_whole(path, json.dumps(record(result), indent=1, ensure_ascii=False) + "\n")
    return path


def record(result: DemoResult) -> dict[str, Any]:
    """The run as plain JSON values."""
    judged = repair_summaries(result)
    return {
        "demo": result.settings.name,
        "toy": result.settings.toy,
        "seed": result.seed,
        "settings": dataclasses.asdict(result.settings),
        "versions": {name: version(name) for name in ("deltamend", "torch", "transformers")},
        "seconds": {step: round(seconds, 1) for step, seconds in result.seconds.items()},
        "headline": headline_of(result),
        "models": {
            name: dataclasses.asdict(measured)
            for name, measured in zip(model_names(result), _all_measured(result), strict=True)
        },
        "repairs": [
            {
                **dataclasses.asdict(judgement),
                "method": repaired.report.manifest.method,
                "parameters": repaired.report.manifest.parameters,
                "realised_error": repaired.report.realised_error,
                "manifest": f"{repaired.choice.method}/deltamend.json",
            }
            for judgement, repaired in zip(judged, result.repaired, strict=True)
        ],
        "prompts": {
            "target": [dataclasses.asdict(problem) for problem in result.exam.problems],
            "chat": list(result.exam.probes.chat),
        },
    }


def build_page(result: DemoResult) -> DemoPage:
    """The page's content."""
    judged = repair_summaries(result)
    return DemoPage(
        title=_title(result),
        headline=headline_of(result),
        damage=_damage(result),
        toy=result.settings.toy,
        models=model_names(result),
        verdicts=tuple(map(_verdict, judged)),
        measures=tuple(_measure_row(result, key) for key in MEASURES),
        samples=_samples(result),
        repairs=tuple(map(_facts, result.repaired)),
        setup=_setup(result),
        commands=commands(result),
        footer=f"deltamend {version('deltamend')}, torch {version('torch')}, transformers {version('transformers')}; "
        f"all numbers and replies: {RECORD_FILE}, next to this page.",
    )


def commands(result: DemoResult) -> tuple[str, ...]:
    """What to type to get the same again: the whole demo, and each of its repairs."""
    base, finetuned = _shown(result.base_folder), _shown(result.finetuned_folder)
    demo = f"deltamend demo{' --quick' if result.settings.toy else ''} --seed {result.seed}"
    repairs = []
    for repaired in result.repaired:
        settings = "".join(f" --set {key}={value:g}" for key, value in repaired.choice.parameters)
        out = _shown(result.out / repaired.choice.method)
        repairs.append(
            f"deltamend repair {base} {finetuned} {out} --method {repaired.choice.method}{settings} --overwrite"
        )
    return (demo, *repairs)


def next_command(result: DemoResult) -> str:
    """What to try after the demo: a dry run on the same pair, which shows every tensor and costs nothing."""
    base, finetuned = _shown(result.base_folder), _shown(result.finetuned_folder)
    return f"deltamend repair {base} {finetuned} {_shown(result.out / 'next')} --dry-run -v"


def value_text(estimate: Measurement) -> str:
    """`97%` for a share, `2.81` for nats a token."""
    return f"{estimate.value:.0%}" if estimate.higher_is_better else f"{estimate.value:.2f}"


def interval_text(estimate: Measurement) -> str:
    """`94–99%` for a share, `2.70–2.92` for nats a token."""
    if estimate.higher_is_better:
        return f"{100 * estimate.low:.0f}–{estimate.high:.0%}"
    return f"{estimate.low:.2f}–{estimate.high:.2f}"


def _damage(result: DemoResult) -> str:
    damaged = damaged_measures(result.base.estimates, result.finetuned.estimates)
    names = ", ".join(MEASURES[key].title.lower() for key in damaged)
    target = f"{value_text(result.base.estimates[TARGET])} to {value_text(result.finetuned.estimates[TARGET])}"
    return f"Fine-tuning took the target from {target}. Clearly worse after it: {names or 'nothing'}."


def _verdict(judged: RepairSummary) -> RepairVerdict:
    meters = (_meter("Damage healed", judged.healed), _meter("Task kept", judged.kept))
    return RepairVerdict(judged.name, meters, tuple(sentences(judged)))


def _meter(label: str, share: float | None) -> Meter:
    return Meter(label, share, "–" if share is None else percent(share))


def _measure_row(result: DemoResult, key: str) -> MeasureRow:
    estimates = [measured.estimates[key] for measured in _all_measured(result)]
    words = MEASURES[key]
    count = f"{words.explanation} n = {estimates[0].n:,}."
    return MeasureRow(words.title, count, tuple(_cell(estimate, estimates[0]) for estimate in estimates))


def _cell(estimate: Measurement, base: Measurement) -> MeasureCell:
    """Nats have no natural full scale: their bar is the likelihood of a token relative to the base, exp(b − x)."""
    if estimate.higher_is_better:
        ends = (estimate.value, estimate.low, estimate.high)
    else:
        ends = (math.exp(base.value - x) for x in (estimate.value, estimate.high, estimate.low))  # type: ignore[assignment]
    bar, low, high = (min(1.0, end) for end in ends)
    return MeasureCell(value_text(estimate), interval_text(estimate), bar, low, high)


def _samples(result: DemoResult) -> tuple[SampleReplies, ...]:
    everyone = _all_measured(result)
    chat = [
        SampleReplies(result.exam.probes.chat[index], tuple(m.chat_replies[index] for m in everyone))
        for index in result.settings.samples
    ]
    return (*chat, SampleReplies(result.exam.problems[0].question, tuple(m.target_replies[0] for m in everyone)))


def _facts(repaired: RepairedModel) -> RepairRow:
    report = repaired.report
    found = Counter(tensor.outcome for tensor in report.tensors if tensor.action == "filter")
    spectra = [tensor.spectrum for tensor in report.tensors if tensor.spectrum is not None]
    rank, full = sum(s.rank for s in spectra), sum(s.full_rank for s in spectra)
    return RepairRow(
        name=repaired.choice.label,
        matrices=", ".join(f"{count} {name}" for name, count in found.most_common()),
        rank=f"{rank:,} of {full:,} ({rank / full:.0%})" if full else "not counted",
        energy=f"{report.kept_energy:.1%}",
        rounding=f"{report.realised_error:.1%}",
        record=f"{repaired.choice.method}/deltamend.json",
    )


def _setup(result: DemoResult) -> tuple[str, ...]:
    settings, recipe = result.settings, result.settings.damage
    smallest, largest = settings.operands
    base = (
        "The base is a two-layer Llama, trained for a few seconds on the very texts it is asked about."
        if settings.toy
        else f"The base is {settings.model}, unpacked from a 4-bit GGUF file and stored in bf16."
    )
    return (
        base,
        f"The damage: every weight was fine-tuned for {recipe.steps} steps of {recipe.batch} sums of two numbers "
        f"from {smallest} to {largest}, answered with bare digits (AdamW, learning rate {recipe.lr:g}, bf16 autocast where the processor has bf16, fp32 "
        "master weights).",
        "The fine-tuned model was stored in bf16, as most published models are. The update the repairs see is therefore the "
        "rounded one, and their output is rounded to bf16 again.",
        "Changed by rounding: the difference between the update that was written and the one the repair meant, against the "
        "size of the latter. The option --out-dtype fp32 avoids it.",
        "A repair changes matrices only; norms and biases keep their fine-tuned values.",
        "Healed is the share of the loss won back, averaged over the measures on which the fine-tuned model is worse than "
        "the base beyond chance (95%, compared question by question).",
        f"Seed {result.seed}. Wall time: "
        + ", ".join(f"{step} {seconds:.0f} s" for step, seconds in result.seconds.items())
        + ".",
    )


def _all_measured(result: DemoResult) -> tuple[Measured, ...]:
    return (result.base, result.finetuned, *(repaired.measured for repaired in result.repaired))


def _title(result: DemoResult) -> str:
    return f"deltamend demo: damage and repair of {result.settings.model}"


def _shown(path: Path) -> str:
    """A path as one would type it here: relative where it lies below the working folder, quoted where it has to be."""
    absolute = path.resolve()
    below = absolute.is_relative_to(Path.cwd())
    return shlex.quote(os.path.relpath(absolute) if below else str(absolute))
