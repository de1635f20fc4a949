"""What the numbers of one matrix say, and what those of a whole update say: one table of rules, which docs/diagnose.md shows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from deltamend.diagnosis.records import MatrixDiagnosis, Measured, Verdict

UNCHANGED = 1e-4
LOW_RANK_SHARE, LOW_RANK_RESIDUE = 0.25, 1e-4
ROUNDED = 0.5
NOISE_KS = 0.05
LEVEL = 0.01


@dataclass(frozen=True)
class VerdictRule:
    """One row of the table.

    Attributes:
        verdict: the words.
        when: the condition, in words.
        holds: the condition, on the numbers.
        reasons: sentences with the numbers that made it hold.
        meaning: what it means for a spectral threshold.
        advice: what to try.
        commands: what to run next; BASE, FINETUNED and OUT stand for folders.
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
        "of ‖Δ‖²; the rest is not above rounding.",
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
            f"Rounding to {found.rounding.stored} would add {found.rounding.share:.0%} of the bulk's variance if its errors "
            "were spread evenly over an ulp."
        )
    if found.entries.zeros >= ROUNDED:
        reasons.append(
            "Where most of Δ is 0, smaller changes were rounded away whole: the rounding is the update itself, and ulp²/12 "
            "is not the size of a noise that was added to it."
        )
    return reasons + _bulk_reasons(found)


def _noise(found: Measured) -> bool:
    bulk = found.bulk
    if bulk is None:
        return False
    # A small matrix gives the distances little power: then what is said of its entries counts too.
    return bulk.ks <= NOISE_KS or (min(bulk.ks_p, bulk.ad_p) >= LEVEL and not _entry_reasons(found))


def _bulk_reasons(found: Measured) -> list[str]:
    bulk, spectrum, controls = found.bulk, found.spectrum, found.controls
    if bulk is None or spectrum is None:
        return ["No threshold could be measured, and the rest is not low-rank either."] if spectrum is not None else []
    relation = "as far as noise does" if bulk.ks_p >= LEVEL else "farther than noise does"
    reasons = [
        f"The {bulk.size} singular values up to τ lie {bulk.ks:.3f} (KS) from the law of noise, {relation} (p = {bulk.ks_p:.2g})."
    ]
    if controls is not None and controls.shuffled is not None and controls.flipped is not None:
        reasons.append(
            f"With the entries shuffled it is {controls.shuffled.ks:.3f} (p = {controls.shuffled.ks_p:.2g}), "
            f"with random signs {controls.flipped.ks:.3f} (p = {controls.flipped.ks_p:.2g})."
        )
    reasons.append(f"DG-Hard keeps {spectrum.rank} of {min(found.shape)} ranks and {spectrum.energy:.1%} of ‖Δ‖².")
    return reasons + _entry_reasons(found)


def _entry_reasons(found: Measured) -> list[str]:
    """Which assumption about the entries fails, the ones that fail by much first."""
    entries = found.entries
    if entries is None:
        return []
    said = []
    for side, spread in (("rows", entries.rows), ("columns", entries.columns)):
        if spread.variation_p < LEVEL:
            said.append((spread.variation, f"variances of {side} that differ by {spread.variation:.0%}"))
        if spread.correlation_p < LEVEL:
            said.append(
                (abs(spread.correlation), f"a correlation of {spread.correlation:+.2g} between neighbouring {side}")
            )
    if entries.kurtosis_p < LEVEL:
        said.append((abs(entries.kurtosis) / 10.0, f"an excess kurtosis of {entries.kurtosis:.2g}"))
    if not said:
        return []
    return [f"Entries are not iid normal: {', '.join(text for _, text in sorted(said, reverse=True))}."]


RULES = (
    VerdictRule(
        "almost unchanged",
        f"Δ = 0, or ‖Δ‖ < {UNCHANGED:g}·‖W_base‖",
        _unchanged,
        _unchanged_reasons,
        "There is next to nothing to filter.",
        "Look for the damage elsewhere: in norms, biases, the tokenizer or the chat template.",
        (),
    ),
    VerdictRule(
        "low-rank by construction",
        f"at most {LOW_RANK_SHARE:.0%} of the singular values are above rounding, and the others hold at most {LOW_RANK_RESIDUE:g} of ‖Δ‖²; or FINETUNED is BASE+ADAPTER of such a rank",
        _low_rank,
        _low_rank_reasons,
        "The median singular value is rounding and says nothing of noise: DG-Hard keeps Δ, or all of it but rounding. A merged "
        "adapter looks like this.",
        "Use a method that does not read the median: scale the update, or shrink its intruder dimensions. Where the adapter itself is "
        "at hand, give it as BASE+ADAPTER: spectrum=nonzero then measures noise on its own singular values.",
        (
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
        "The bulk that sets τ is mostly the stored dtype. τ separates what is larger than rounding, not task from damage, and "
        "writing in the same dtype may undo the repair.",
        "Diagnose and repair the fp32 weights if they exist; else write the repaired model in fp32.",
        ("deltamend repair BASE FINETUNED OUT --out-dtype fp32",),
    ),
    VerdictRule(
        "noise-like bulk",
        f"the values up to τ lie within KS {NOISE_KS:g} of the Marchenko–Pastur law, or neither distance is rejected at {LEVEL:.0%} and no test of the entries is",
        _noise,
        _bulk_reasons,
        "The threshold means what the paper says: what is below it looks like iid noise.",
        "Repair with DG-Hard, then evaluate: a bulk of noise does not say that the damage was in it.",
        ("deltamend repair BASE FINETUNED OUT",),
    ),
    VerdictRule(
        "structured residual",
        "none of the above, and the bulk could be tested",
        lambda found: found.bulk is not None,
        _bulk_reasons,
        "The threshold does not mean what the paper says: what is below it is not iid noise, and its median is no noise level. "
        "Where DG-Hard keeps nearly all of ‖Δ‖², expect little healing from it.",
        "Compare what the methods keep, and evaluate more than one; noise=screenot assumes correlated noise.",
        ("deltamend compare BASE FINETUNED", "deltamend repair BASE FINETUNED OUT --set noise=screenot"),
    ),
    VerdictRule(
        "too small to tell",
        "none of the above: fewer than 16 values lie up to τ, or half of them are 0",
        lambda _: True,
        _bulk_reasons,
        "There are too few values for a test.",
        "Judge the matrix by its neighbours.",
        (),
    ),
)  # fmt: skip
"""The first rule that holds decides."""


def rule_of(verdict: Verdict) -> VerdictRule:
    """The row of a verdict."""
    return next(rule for rule in RULES if rule.verdict == verdict)


def table() -> str:
    """The rules in Markdown, as docs/diagnose.md shows them: `python -c "from deltamend.diagnosis.verdict import table; print(table())"`."""
    lines = ["| verdict | when | what it means | what to try |", "|---|---|---|---|"]
    for rule in RULES:
        commands = " ".join(f"`{command}`" for command in rule.commands)
        lines.append(f"| {rule.verdict} | {rule.when} | {rule.meaning} | {rule.advice} {commands} |".replace("  ", " "))
    return "\n".join(lines)


def judge(found: Measured) -> tuple[Verdict, tuple[str, ...]]:
    """The verdict on one matrix, and its reasons."""
    rule = next(rule for rule in RULES if rule.holds(found))
    return rule.verdict, tuple(rule.reasons(found))


def most_of(matrices: Sequence[MatrixDiagnosis]) -> Verdict:
    """The verdict that holds for most of the entries; of equals the one that comes first in the table."""
    entries = {rule.verdict: sum(found.size for found in matrices if found.verdict == rule.verdict) for rule in RULES}
    return max(entries, key=lambda verdict: entries[verdict])


def summary(matrices: Sequence[MatrixDiagnosis]) -> tuple[Verdict, tuple[str, ...], tuple[str, ...]]:
    """The verdict on the whole update, sentences about it, and commands to run next."""
    verdict, total = most_of(matrices), sum(found.size for found in matrices)
    rule = rule_of(verdict)
    same = [found for found in matrices if found.verdict == verdict]
    share = math.floor(1000 * sum(found.size for found in same) / total) / 1000  # 100% is all of them
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
    """Energy kept, fit, rounding and writing over the whole update."""
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
            f"The KS distance to the law of noise is {median(fits):.3f} in the median matrix "
            f"({fits[0]:.3f} to {fits[-1]:.3f}); with shuffled entries it is {median(shuffled):.3f}."
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
        sentences.append(f"Written in {written}, the realised update would differ from Δ* by {change:.2%}.")
    return sentences
