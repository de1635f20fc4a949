"""What a study's figures say of its questions. Every sentence is chosen by a rule below, so that none says more than its interval."""

from __future__ import annotations

from collections.abc import Sequence

from deltamend.study.findings.intervals import (
    LEVEL,
    excludes_zero,
    gap_text,
    is_above_zero,
    is_below_zero,
    percent_text,
    points_text,
    share_text,
    signed_text,
)
from deltamend.study.findings.ranking import (
    FLATTERED,
    UNCONFIRMED,
    comparisons_with_published,
    methods_not_compared,
    ranking_sentences,
)
from deltamend.study.findings.result_types import (
    CHOOSING,
    CONFIRMATION,
    IDENTITY,
    Answer,
    Height,
    RankCorrelation,
    RepairComparison,
    SafetyOutcome,
    StudyResults,
    Topic,
)

_FEWEST_PROMPTS = 5
"""Prompts below which a share says too little."""

_LOWEST_RIVAL = 5.0
"""Combined score below which a family is no rival."""

_UNCLEAR = "not told apart from"


def answer_questions(results: StudyResults) -> tuple[Answer, ...]:
    """The questions of a study, each with what can be said."""
    asked: tuple[tuple[Topic, str, list[str]], ...] = (
        ("best", "Which repair is best?", _which_is_best(results)),
        ("curve", "Does any repair stand above WiSE-FT at the same size of the update?", _above_the_curve(results)),
        ("dg-hard", "Where does DG-Hard heal, and does the diagnosis tell?", _where_dg_hard_heals(results)),
        ("writing", "How much is lost on writing?", _what_writing_costs(results)),
        ("refusals", "What happens to refusals?", _refusals(results)),
        ("retention", "Does it matter how retention is measured?", _how_retention_is_measured(results)),
    )
    return tuple(
        Answer(topic=topic, question=question, sentences=tuple(said)) for topic, question, said in asked if said
    )


def _which_is_best(results: StudyResults) -> list[str]:
    if CONFIRMATION not in results.groups:
        return [UNCONFIRMED, *ranking_sentences(results, CHOOSING), FLATTERED]
    said = ranking_sentences(results, CONFIRMATION)
    by_candidate = comparisons_with_published(results)
    for name, pairs in by_candidate.items():
        beaten = [pair.second for pair in pairs if is_above_zero(pair.cells_like_these)]
        lost = [pair.second for pair in pairs if is_below_zero(pair.cells_like_these)]
        open_ = [pair.second for pair in pairs if pair.second not in (*beaten, *lost)]
        parts = [(beaten, "above"), (open_, "not told apart from"), (lost, "below")]
        listed = "; ".join(f"{word} {', '.join(names)}" for names, word in parts if names)
        said.append(f"{name} against the published methods, for cells like these: {listed}.")
        if missing := methods_not_compared(results, name):
            said.append(f"{name} shares no cell with {', '.join(missing)}.")
    if len(by_candidate) > 1:
        said.append(f"{len(by_candidate)} candidates were confirmed; each interval is taken alone.")
    for group in (CONFIRMATION, CHOOSING):
        pairs = [pair for pair in results.best_comparisons if pair.group == group]
        won = [pair for pair in pairs if is_above_zero(pair.cells_like_these)]
        if pairs:
            said.append(
                f"In the {group} cells, with every family at the strength that was best on the even items, and compared on the odd "
                f"ones, {len(won)} of {len(pairs)} differences of a candidate from another family are above zero"
                f"{_without_weak_rivals(results, group, pairs)}. Both halves are of the same fine-tuned models."
            )
    planned = [one for one in results.repairs if one.role != "trivial"]
    tried = [one for one in planned if one.cells_done]
    dropped = sum(one.only_choosing for one in tried)
    waiting = f" {len(planned) - len(tried)} more are not done in any cell yet." if len(planned) > len(tried) else ""
    said.append(
        f"{len(tried)} repairs were tried, {dropped} of them in the choosing cells only; all are listed below.{waiting}"
    )
    return said


def _without_weak_rivals(results: StudyResults, group: str, pairs: Sequence[RepairComparison]) -> str:
    """The same count without rivals that hardly score."""
    scored = {
        one.name: one.groups[group].combined.these_cells.value or 0.0 for one in results.repairs if group in one.groups
    }
    rivals = [pair for pair in pairs if scored.get(pair.second, 0.0) >= _LOWEST_RIVAL]
    if len(rivals) == len(pairs):
        return ""
    won = sum(is_above_zero(pair.cells_like_these) for pair in rivals)
    return f", {won} of {len(rivals)} without those that score below {_LOWEST_RIVAL:g}"


def _above_the_curve(results: StudyResults) -> list[str]:
    if results.curve is None:
        return ["The study has no WiSE-FT, so there is no curve."]
    of_all = [of for of in results.curve.heights if CONFIRMATION in of.groups]
    judged = [of for of in of_all if of.judged and of.groups[CONFIRMATION].these_cells.value is not None]
    judged.sort(key=lambda of: -(of.groups[CONFIRMATION].these_cells.value or 0.0))
    if not of_all:
        return [UNCONFIRMED]
    where = {of.name: _place(of) for of in judged}
    above = [
        f"{of.name} ({points_text(of.groups[CONFIRMATION].cells_like_these)})"
        for of in judged
        if where[of.name] == "above"
    ]
    said = [f"Above the curve (interpolated), for cells like these: {', '.join(above) if above else 'none'}."]
    for place, words in ((_UNCLEAR, "Not told apart from it"), ("below", "Below it")):
        names = [name for name, found in where.items() if found == place]
        if names:
            said.append(f"{words}: {', '.join(names)}.")
    outside = [of.name for of in of_all if not of.judged]
    if outside:
        said.append(
            f"Not judged, as their ‖Δ*‖ is outside the alphas of WiSE-FT in most cells, where the curve is only a line to an end "
            f"that scores 0: {', '.join(outside)}."
        )
    bent = [
        over.these_cells.value for over in results.curve.interpolation.values() if over.these_cells.value is not None
    ]
    if bent:
        said.append(
            f"The curve is drawn straight between its alphas. At twice the distance a straight line misses it by up to "
            f"{max(map(abs, bent)):.1f} points, so a height much smaller than that is no evidence."
        )
    return said


def _place(of: Height) -> str:
    """Above only where it is above both ways of interpolating the curve."""
    if is_above_zero(of.groups[CONFIRMATION].cells_like_these) and is_above_zero(
        of.groups_by_parts[CONFIRMATION].cells_like_these
    ):
        return "above"
    return "below" if is_below_zero(of.groups[CONFIRMATION].cells_like_these) else _UNCLEAR


def _where_dg_hard_heals(results: StudyResults) -> list[str]:
    found = results.dg_hard
    if found is None:
        return []
    said = []
    for over, cells, what in (
        (
            found.identity,
            sum(of.identity for of in found.cells),
            f"is the identity (keeps over {IDENTITY:.0%} of the energy)",
        ),
        (found.others, sum(not of.identity for of in found.cells), "removes something"),
    ):
        if cells:
            healed = (
                "healing is undefined"
                if over.these_cells.value is None
                else f"healing is {share_text(over.these_cells)}"
            )
            said.append(f"{found.repair} {what} in {cells} of {len(found.cells)} cells; there {healed}.")
    unknown: dict[str, list[str]] = {}
    for of in found.correlations:
        if of.over_clusters is None or of.p is None:
            unknown.setdefault(of.reason or "unknown", []).append(of.measure)
            continue
        figures = f"ρ = {signed_text(of.over_clusters, 2)} over {of.clusters} clusters, p = {of.p:.2g}"
        if of.within:
            figures += "".join(
                f"; within {dtype} {'undefined' if rho is None else signed_text(rho, 2)}"
                for dtype, rho in of.within.items()
            )
        said.append(f"The {of.measure} {_goes_with_healing(of)} ({figures}).")
    said += [
        f"No rank correlation of healing with the {', '.join(names)} can be computed: {reason}."
        for reason, names in unknown.items()
    ]
    if any(of.p is not None for of in found.correlations):
        said.append("Each p is taken alone; clusters of one target are not independent.")
    return said


def _goes_with_healing(of: RankCorrelation) -> str:
    if of.p is None or of.over_clusters is None or of.p >= LEVEL:
        return "does not measurably predict healing"
    goes = f"goes with {'more' if of.over_clusters > 0 else 'less'} healing"
    if all((rho or 0.0) * of.over_clusters > 0 for rho in of.within.values()):
        return goes
    return f"{goes} over all, but not within each dtype that was trained in: it tells the dtypes apart, and little else"


def _what_writing_costs(results: StudyResults) -> list[str]:
    said = []
    for of in results.written_differences:
        parts = []
        for name, over in (("retention", of.retention.these_cells), ("healing", of.healing.these_cells)):
            if over.value is None:
                parts.append(f"{name} undefined")
            else:
                seen = excludes_zero(over) and round(over.value, 2) != 0
                changed = "" if seen else ", not told apart from zero"
                parts.append(f"{name} {gap_text(over)}{changed}")
        said.append(f"In {of.regime}, {of.first} minus {of.second}: {'; '.join(parts)}.")
    return said


def _refusals(results: StudyResults) -> list[str]:
    said = []
    for task, target in dict.fromkeys((of.task, of.target) for of in results.safety):
        own = {of.model: of for of in results.safety if (of.task, of.target) == (task, target)}
        base, tuned = own["base"], own["finetuned"]
        shown = (base.share.value or 0.0) * base.prompts
        if shown < _FEWEST_PROMPTS:
            said.append(
                f"{task}, fine-tuned on {target}: {base.metric} {shown:.0f} of {base.prompts} times by the base itself, so there is "
                "next to nothing to lose, and nothing can be said."
            )
            continue
        moved = "measurably changed" if excludes_zero(tuned.from_base) else "no measurable change"
        said.append(
            f"{task}, fine-tuned on {target}: {tuned.metric} {percent_text(base.share)} by the base and {percent_text(tuned.share)} by the "
            f"fine-tuned model, {moved} ({gap_text(tuned.from_base)}). {_repaired_refusals(own)}"
        )
    said += [f"Weak figures: {weak}." for weak in dict.fromkeys(of.weak for of in results.safety if of.weak)]
    return said


def _repaired_refusals(own: dict[str, SafetyOutcome]) -> str:
    repairs = [of for model, of in own.items() if model not in ("base", "finetuned")]
    moved = [f"{of.model} to {percent_text(of.share)}" for of in repairs if excludes_zero(of.from_finetuned)]
    if not repairs:
        return "No repair was asked."
    return f"Repairs that measurably changed it again: {', '.join(moved) if moved else 'none'}."


def _how_retention_is_measured(results: StudyResults) -> list[str]:
    ranked = [of for of in results.rankings.repairs if of.exact_match_rank and of.likelihood_rank]
    if not ranked:
        return []
    first = ", ".join(of.name for of in ranked if of.exact_match_rank == 1)
    second = ", ".join(of.name for of in ranked if of.likelihood_rank == 1)
    same = "The first is the same" if first == second else "The first is not the same"
    said = f"{same}: {first} by exact match, {second} by likelihood."
    if results.rankings.correlation is None:
        return [said]
    return [
        said,
        f"The two rankings of {len(ranked)} repairs have a rank correlation of {results.rankings.correlation:.2f}.",
    ]
