"""Verdicts on a matrix and on a whole update, by one table of rules, which docs/diagnose.md shows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from deltamend.diagnosis.records import MatrixDiagnosis, Measured, Verdict

UNCHANGED = 1e-4
"""A smaller ‖Δ‖/‖W_base‖ counts as almost unchanged."""
LOW_RANK_SHARE, LOW_RANK_RESIDUE = 0.25, 1e-4
"""Δ counts as low-rank if at most this share of its singular values holds all but this share of ‖Δ‖²."""
ROUNDED = 0.5
"""A greater share of zero entries, or of the bulk that rounding explains, counts as dominated by rounding."""
NOISE_KS = 0.05
"""A bulk at no greater KS distance from the law of noise counts as noise, however small its p-value."""
LEVEL = 0.01
"""The level of significance of all tests."""


@dataclass(frozen=True)
class VerdictRule:
    """One row of the table of rules.

    Attributes:
        verdict: the verdict.
        when: the condition, in words.
        holds: the condition, as a function of the measurements.
        reasons: makes sentences with the numbers for which the condition holds.
        meaning: what the verdict means for a spectral threshold.
        advice: what to try next.
        commands: commands to run next; BASE, FINETUNED and OUT are placeholders for folders.
    """

    verdict: Verdict
    when: str
    holds: Callable[[Measured], bool]
    reasons: Callable[[Measured], list[str]]
    meaning: str
    advice: str
    commands: tuple[str, ...]


def _unchanged(found: Measured) -> bool:
    relative = None if found.base is None else found.base.relative_norm
    return found.norm == 0.0 or (relative is not None and relative < UNCHANGED)


def _unchanged_reasons(found: Measured) -> list[str]:
    if found.base is None or found.base.relative_norm is None:
        return ["Δ is exactly 0."]
    return [f"‖Δ‖ is {found.base.relative_norm:.2g} of ‖W_base‖."]


def _low_rank(found: Measured) -> bool:
    spectrum = found.spectrum
    if spectrum is None:
        return False
    if found.update_rank is not None and found.update_rank <= LOW_RANK_SHARE * min(found.shape):
        return True
    few = spectrum.numerical_rank <= LOW_RANK_SHARE * min(found.shape)
    return few and spectrum.numerical_rank > 0 and spectrum.residue <= LOW_RANK_RESIDUE


def _low_rank_reasons(found: Measured) -> list[str]:
    if found.spectrum is None:
        return []
    known = [] if found.update_rank is None else [f"Δ is a LoRA adapter of rank {found.update_rank}."]
    return [
        *known,
        f"{found.spectrum.numerical_rank} of {min(found.shape)} singular values hold all but {found.spectrum.residue:.1g} "
        "of ‖Δ‖²; the others are not larger than rounding errors.",
    ]


def _rounded(found: Measured) -> bool:
    if found.entries is None or found.rounding is None:
        return False
    return found.entries.zeros >= ROUNDED or (found.rounding.share or 0.0) >= ROUNDED


def _rounded_reasons(found: Measured) -> list[str]:
    if found.entries is None or found.rounding is None:
        return []
    reasons = [f"{found.entries.zeros:.0%} of Δ is exactly 0."]
    if found.rounding.share is not None:
        reasons.append(
            f"Rounding to {found.rounding.stored} would explain {found.rounding.share:.0%} of the bulk's variance if its "
            "errors were uniform over one ulp."
        )
    if found.entries.zeros >= ROUNDED:
        reasons.append(
            "Where most of Δ is 0, smaller changes were rounded away entirely, so rounding shaped the update itself and is "
            "not a noise of size ulp²/12 that was added to it."
        )
    return reasons + _bulk_reasons(found)


def _noise(found: Measured) -> bool:
    bulk = found.bulk
    if bulk is None:
        return False
    # On a small matrix the tests of the distances have little power, so the tests of the entries count as well.
    return bulk.ks <= NOISE_KS or (min(bulk.ks_p, bulk.ad_p) >= LEVEL and not _entry_reasons(found))


def _bulk_reasons(found: Measured) -> list[str]:
    bulk, spectrum, controls = found.bulk, found.spectrum, found.controls
    if bulk is None or spectrum is None:
        return ["The bulk could not be tested, and Δ is not low-rank either."] if spectrum is not None else []
    relation = "no farther than noise would be" if bulk.ks_p >= LEVEL else "farther than noise would be"
    reasons = [
        f"The {bulk.size} singular values up to τ are at a KS distance of {bulk.ks:.3f} from the law of noise, "
        f"{relation} (p = {bulk.ks_p:.2g})."
    ]
    if controls is not None and controls.shuffled is not None and controls.flipped is not None:
        reasons.append(
            f"With shuffled entries the distance is {controls.shuffled.ks:.3f} (p = {controls.shuffled.ks_p:.2g}), "
            f"with random signs {controls.flipped.ks:.3f} (p = {controls.flipped.ks_p:.2g})."
        )
    reasons.append(
        f"DG-Hard keeps {spectrum.rank} of {min(found.shape)} singular values and {spectrum.energy:.1%} of ‖Δ‖²."
    )
    return reasons + _entry_reasons(found)


def _entry_reasons(found: Measured) -> list[str]:
    """A sentence on the assumptions about the entries that fail, the gravest failure first; none if all hold."""
    entries = found.entries
    if entries is None:
        return []
    failures = []  # how grave each failure is, and its description
    for side, spread in (("rows", entries.rows), ("columns", entries.columns)):
        if spread.variation_p < LEVEL:
            failures.append((spread.variation, f"the variances of {side} differ by {spread.variation:.0%}"))
        if spread.correlation_p < LEVEL:
            failures.append(
                (abs(spread.correlation), f"neighbouring {side} have a correlation of {spread.correlation:+.2g}")
            )
    if entries.kurtosis_p < LEVEL:
        failures.append((abs(entries.kurtosis) / 10.0, f"the excess kurtosis is {entries.kurtosis:.2g}"))
    if not failures:
        return []
    texts = ", ".join(text for _, text in sorted(failures, reverse=True))
    return [f"The entries are not independent normal numbers of one variance: {texts}."]


_AUTO = "deltamend repair BASE FINETUNED OUT --method auto"
"""Rests on none of the assumptions that are tested here."""

RULES = (
    VerdictRule(
        "almost unchanged",
        f"Δ = 0, or ‖Δ‖ < {UNCHANGED:g}·‖W_base‖",
        _unchanged,
        _unchanged_reasons,
        "There is almost no update to filter.",
        "Look for the cause of the damage elsewhere: in norms, biases, the tokenizer or the chat template.",
        (),
    ),
    VerdictRule(
        "low-rank by construction",
        f"at most {LOW_RANK_SHARE:.0%} of the singular values are larger than rounding errors, and the others hold at most {LOW_RANK_RESIDUE:g} of ‖Δ‖²; or FINETUNED was given as BASE+ADAPTER and the adapter has such a rank",
        _low_rank,
        _low_rank_reasons,
        "The median singular value is a rounding error and tells nothing about noise, so DG-Hard keeps all of Δ, or all but "
        "rounding errors. A merged LoRA adapter looks like this.",
        "Use a method that does not depend on the median: the recommended one, or scale the update, or shrink its intruder dimensions. If you have the "
        "adapter itself, give FINETUNED as BASE+ADAPTER; with spectrum=nonzero the noise is then measured on the singular values "
        "of the adapter alone.",
        (
            _AUTO,
            "deltamend repair BASE FINETUNED OUT --method wise-ft --set alpha=0.5",
            "deltamend repair BASE FINETUNED OUT --method intruder",
            "deltamend repair BASE FINETUNED OUT --set spectrum=nonzero",
        ),
    ),
    VerdictRule(
        "rounding-dominated",
        f"at least {ROUNDED:.0%} of Δ is exactly 0, or ulp²/12 is at least {ROUNDED:.0%} of the bulk's variance",
        _rounded,
        _rounded_reasons,
        "The bulk that determines τ is mostly rounding of the stored dtype. So τ separates changes that are larger than rounding "
        "from smaller ones, not the task from the damage. Writing in the same dtype rounds the repair again, which takes away more "
        "of the update.",
        "If the weights exist in fp32, or from before a quantisation, diagnose and repair those. Otherwise take the recommended "
        "method, which does not go by τ, or compare several. "
        "What DG-Hard keeps is best written in the dtype of the fine-tuned model, by default: in our studies most of its healing "
        "came from that last rounding, and writing it in fp32 lost it.",
        (
            _AUTO,
            "deltamend compare BASE FINETUNED",
            "deltamend repair BASE FINETUNED OUT",
            "deltamend repair BASE FINETUNED OUT --method wise-ft --set alpha=0.5",
        ),
    ),
    VerdictRule(
        "noise-like bulk",
        f"the singular values up to τ are within a KS distance of {NOISE_KS:g} of the Marchenko–Pastur law; or neither the KS nor the Anderson–Darling test nor any test of the entries rejects noise at the {LEVEL:.0%} level",
        _noise,
        _bulk_reasons,
        "The assumption behind the threshold holds: the part of the update below it looks like independent noise.",
        "Repair with DG-Hard, then evaluate the result: that the bulk is noise does not imply that it caused the damage.",
        ("deltamend repair BASE FINETUNED OUT", _AUTO),
    ),
    VerdictRule(
        "structured residual",
        "none of the above, and the bulk could be tested",
        lambda found: found.bulk is not None,
        _bulk_reasons,
        "The assumption behind the threshold fails: the part of the update below it is not independent noise, and its median is "
        "not a noise level. If DG-Hard keeps nearly all of ‖Δ‖², it can heal little.",
        "Take the recommended method, which does not rest on that assumption, or compare what several keep, and evaluate them; "
        "noise=screenot allows for correlated noise.",
        (_AUTO, "deltamend compare BASE FINETUNED", "deltamend repair BASE FINETUNED OUT --set noise=screenot"),
    ),
    VerdictRule(
        "too small to tell",
        "none of the above: fewer than 16 singular values lie up to τ, or half of them are 0",
        lambda _: True,
        _bulk_reasons,
        "There are too few singular values for a test.",
        "Judge the matrix by similar matrices in other layers.",
        (),
    ),
)  # fmt: skip
"""The table of rules. The first rule whose condition holds gives the verdict."""


def rule_of(verdict: Verdict) -> VerdictRule:
    """The rule that gives a verdict."""
    return next(rule for rule in RULES if rule.verdict == verdict)


def table() -> str:
    """The table of rules in Markdown, as docs/diagnose.md shows it.

    `python -c "from deltamend.diagnosis.verdict import table; print(table())"` prints it.
    """
    lines = ["| verdict | when | what it means | what to try |", "|---|---|---|---|"]
    for rule in RULES:
        commands = " ".join(f"`{command}`" for command in rule.commands)
        lines.append(f"| {rule.verdict} | {rule.when} | {rule.meaning} | {rule.advice} {commands} |".replace("  ", " "))
    return "\n".join(lines)


def judge(found: Measured) -> tuple[Verdict, tuple[str, ...]]:
    """Give the verdict on one matrix, with its reasons."""
    rule = next(rule for rule in RULES if rule.holds(found))
    return rule.verdict, tuple(rule.reasons(found))


def most_of(matrices: Sequence[MatrixDiagnosis]) -> Verdict:
    """The verdict that holds for most of the entries; if two are equal, the one that comes first in the table."""
    entries = {rule.verdict: sum(found.size for found in matrices if found.verdict == rule.verdict) for rule in RULES}
    return max(entries, key=lambda verdict: entries[verdict])


def summary(matrices: Sequence[MatrixDiagnosis]) -> tuple[Verdict, tuple[str, ...], tuple[str, ...]]:
    """Give the verdict on the whole update, with the findings in sentences and the commands to run next."""
    verdict, total = most_of(matrices), sum(found.size for found in matrices)
    rule = rule_of(verdict)
    same = [found for found in matrices if found.verdict == verdict]
    share = math.floor(1000 * sum(found.size for found in same) / total) / 1000  # rounded down, so that 100% means all
    sentences = [
        f"{len(same)} of {len(matrices)} matrices, {100 * share:.3g}% of the entries: {verdict}.",
        rule.meaning,
        *_numbers(matrices, fit=verdict not in ("almost unchanged", "low-rank by construction")),
        rule.advice,
    ]
    for other in RULES:
        count = sum(found.verdict == other.verdict for found in matrices)
        if count and other is not rule:
            sentences.append(f"{count} {'matrix' if count == 1 else 'matrices'}: {other.verdict}. {other.meaning}")
    return verdict, tuple(sentences), rule.commands


def _numbers(matrices: Sequence[MatrixDiagnosis], *, fit: bool) -> list[str]:
    """Sentences with the numbers of the whole update: kept energy, fit to the law of noise, and loss by rounding."""
    spectra = [(found.norm**2, found.spectrum) for found in matrices if found.spectrum is not None]
    energy = sum(weight for weight, _ in spectra)
    sentences = []
    if energy:
        kept = sum(weight * spectrum.energy for weight, spectrum in spectra) / energy
        sentences.append(f"DG-Hard keeps {kept:.1%} of ‖Δ‖² over all matrices.")
    fits = sorted(found.bulk.ks for found in matrices if found.bulk is not None)
    shuffled = sorted(
        found.controls.shuffled.ks for found in matrices if found.controls is not None and found.controls.shuffled
    )
    if fit and fits and shuffled:
        sentences.append(
            f"The median KS distance to the law of noise is {median(fits):.3f} (from {fits[0]:.3f} to {fits[-1]:.3f}); with "
            f"shuffled entries it is {median(shuffled):.3f}."
        )
    lost = [
        (found.rounding.lost**2, found.norm**2 * found.spectrum.energy)
        for found in matrices
        if found.rounding is not None and found.rounding.lost is not None and found.spectrum is not None
    ]
    weight = sum(kept for _, kept in lost)
    if weight:
        change = (sum(part * kept for part, kept in lost) / weight) ** 0.5
        written = next(found.rounding.written for found in matrices if found.rounding is not None)
        sentences.append(f"Rounding to {written} would change the update that DG-Hard keeps by {change:.2%}.")
    return sentences
