"""What the numbers say, in words. Every sentence is chosen by a rule below, so the page cannot flatter a repair."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean, stdev

from deltamend.checkpoint.manifest import MORE_THAN_ALL
from deltamend.demo.intervals import Z_95
from deltamend.demo.measurement import TARGET, Measurement

KEPT_ALMOST_ALL = 0.9  # of the update's energy: what comes out is nearly the fine-tuned model again
HEALED_LITTLE = 0.35
KEPT_TASK = 0.9

Measurements = Mapping[str, Measurement]


@dataclass(frozen=True)
class RepairSummary:
    """What one repair did, as shares from 0 to 1.

    Attributes:
        name: the repair, as the page calls it.
        healed: mean share of the loss won back over the damaged measures; None where nothing was damaged.
        kept: share of what was gained on the target task that is still there; None where nothing was gained.
        kept_energy: share of the update's energy that the filter kept.
    """

    name: str
    healed: float | None
    kept: float | None
    kept_energy: float


def damaged_measures(base: Measurements, finetuned: Measurements) -> list[str]:
    """The measures, the target aside, on which the fine-tuned model is worse than its base beyond chance."""
    return [name for name in base if name != TARGET and _gain(base[name], finetuned[name]) < 0]


def summarise_repair(
    name: str, base: Measurements, finetuned: Measurements, repaired: Measurements, *, kept_energy: float
) -> RepairSummary:
    """Sum up one repair against the base and the fine-tuned model."""
    damaged = damaged_measures(base, finetuned)
    healed = [_share_of_way(finetuned[m].value, base[m].value, repaired[m].value) for m in damaged]
    gained = _gain(base[TARGET], finetuned[TARGET]) > 0
    kept = _share_of_way(base[TARGET].value, finetuned[TARGET].value, repaired[TARGET].value) if gained else None
    return RepairSummary(name, fmean(healed) if healed else None, kept, kept_energy)


def headline(outcomes: list[RepairSummary]) -> str:
    """The result in one sentence."""
    judged = [o for o in outcomes if o.healed is not None and o.kept is not None]
    if len(judged) < len(outcomes):
        return "This run cannot judge a repair: fine-tuning did no clear damage, or did not teach the task."
    best = max(judged, key=_balance)
    if (best.healed or 0.0) < HEALED_LITTLE:
        return "No repair brought much of the damaged model back."
    others = [o for o in judged if o is not best and (o.healed or 0.0) < HEALED_LITTLE]
    tail = "".join(f" {o.name} healed little." for o in others)
    return f"{best.name} undid {_healed_amount(best.healed or 0.0)} of the damage and {_kept_words(best.kept or 0.0)}.{tail}"


def sentences(result: RepairSummary) -> list[str]:
    """Two or three sentences on one repair: what it healed, what it cost, and, where it changed little, why."""
    said = []
    if result.healed is None:
        said.append(f"{result.name}: nothing was clearly damaged, so there was nothing to heal.")
    elif result.healed < HEALED_LITTLE:
        said.append(f"{result.name} healed little: {percent(result.healed)} of the damage is undone.")
    else:
        said.append(f"{result.name} undid {_healed_amount(result.healed)} of the damage ({percent(result.healed)}).")
    if result.kept is not None:
        said.append(f"It {_kept_words(result.kept)} ({percent(result.kept)} of the gain is still there).")
    kept_energy = f"It kept {percent(result.kept_energy)} of the update's energy"
    if result.kept_energy > MORE_THAN_ALL:
        said.append(
            f"The repaired update has {percent(result.kept_energy)} of the update's energy: it was turned, not only shrunk."
        )
    elif result.kept_energy >= KEPT_ALMOST_ALL:
        reason = "the filter took most of the update for signal, so the result is close to the fine-tuned model"
        said.append(f"{kept_energy}: {reason}.")
    elif (result.healed or 0.0) < HEALED_LITTLE and (result.kept or 0.0) >= KEPT_TASK:
        said.append(f"{kept_energy}, and what it kept carries the damage along with the task.")
    else:
        said.append(f"{kept_energy}.")
    return said


def _gain(base: Measurement, other: Measurement) -> float:
    """+1 or −1 where `other` is better or worse than `base` beyond chance (paired over items, 95%), else 0."""
    differences = [b - a for a, b in zip(base.items, other.items, strict=True)]
    noise = Z_95 * stdev(differences) / math.sqrt(len(differences))
    change = fmean(differences) if base.higher_is_better else -fmean(differences)
    return 0.0 if abs(change) <= noise else math.copysign(1.0, change)


def _share_of_way(start: float, end: float, at: float) -> float:
    """How far `at` is on the way from `start` to `end`, cut to [0, 1]."""
    return min(1.0, max(0.0, (at - start) / (end - start)))


def _balance(result: RepairSummary) -> float:
    """Harmonic mean of healed and kept: 0 when either is."""
    healed, kept = result.healed or 0.0, result.kept or 0.0
    return 2 * healed * kept / (healed + kept) if healed + kept else 0.0


def _healed_amount(share: float) -> str:
    if share < 0.65:
        return "about half"
    return "most" if share < KEPT_TASK else "nearly all"


def _kept_words(share: float) -> str:
    if share >= KEPT_TASK:
        return "kept the task"
    return "kept part of the task" if share >= 0.5 else "lost most of the task"


def percent(share: float) -> str:
    """A share as a percentage that says 0% and 100% only when it is: 99.96% does not become 100%."""
    if 0.0 < share < 0.01 or 0.99 < share < 1.0:
        return f"{min(99.9, max(0.1, 100 * share)):.1f}%"
    return f"{share:.0%}"
