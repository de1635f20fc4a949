"""The lead of one repair over others, told line by line: in all cells, by regime, by target, and what it hangs on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from deltamend.scoring.across_cells import MeanOverCells
from deltamend.scoring.result import Estimate
from deltamend.study.findings.lead import (
    ScoredStudy,
    Selection,
    Written,
    best_by_regime,
    choosing_cells,
    cluster_leads,
    combined_scores,
    confirmation_cells,
    in_regime,
    lead_over,
    mean_over,
    mean_score,
    of_clusters_never_seen,
    over_clusters,
    regimes_of,
    scores_by_cell,
    scores_by_retention,
)

SeenCell = tuple[str, str, int]
"""Target, regime and seed of a cell."""


@dataclass(frozen=True)
class LeadQuestion:
    """Which repair is asked about, and which others it is set beside; all by their names in the study.

    Attributes:
        ours: the repair whose lead is told.
        curve: WiSE-FT at the alpha it is compared with first.
        paper: the repair of the paper that the study repeats.
        others: further repairs it is compared with in each study that has them.
        alphas: WiSE-FT at other alphas, of which the choosing cells pick one for each regime.
        alpha_too: WiSE-FT at an alpha that is shown for all studies together.
        published: two or more published methods that are shown for all studies together, after `curve` and `paper`.
        later: a setting that was picked after `ours`; its lead is told over all studies together.
        later_over: what it is compared with.
        seen: confirmation cells that had been looked at when something was decided.
        seen_when: what was decided then, as a clause.
    """

    ours: str
    curve: str
    paper: str
    others: tuple[str, ...]
    alphas: tuple[str, ...]
    alpha_too: str
    published: tuple[str, ...]
    later: str
    later_over: tuple[str, ...]
    seen: frozenset[SeenCell]
    seen_when: str


def lead_lines(question: LeadQuestion, study: ScoredStudy, earlier: ScoredStudy | None = None) -> Iterator[str]:
    """Everything that is told of one study, and then of it and an earlier one together.

    Args:
        question: what is asked.
        study: its cells.
        earlier: another study. Where `study` has no choosing cells, the alphas are picked on those of this one.

    Raises:
        UsageError: a study has no repair of a name that is asked about.
    """
    cells = confirmation_cells(study)
    yield from _over_all(question, cells)
    yield from _by_regime(question, cells)
    yield from _by_target(question, cells)
    yield from _over_best_alphas(question, cells, choosing_cells(study if study.choosing or not earlier else earlier))
    yield from _by_retention(question, cells)
    yield from _without_largest(question, cells)
    yield from _not_seen(question, cells)
    if earlier is not None:
        yield from _over_both(question, (confirmation_cells(earlier), cells))


def mean_in_words(found: MeanOverCells) -> str:
    """A mean over clusters with its intervals, for these very cells and for cells like these."""
    these, like = found.these_cells, found.cells_like_these
    if these.value is None:
        return f"no mean, {these.reason}"
    return f"{these.value:.1f} in {found.cells} cells, {_interval(these)}, for cells like these {_interval(like)}"


def _interval(of: Estimate) -> str:
    return "no interval" if of.low is None else f"[{of.low:.1f}, {of.high:.1f}]"


def _score(selected: Sequence[Selection], name: str, *, stored: bool = False) -> str:
    return f"  {name}: {mean_in_words(mean_score(selected, name, 'stored' if stored else 'float32'))}"


def _lead(selected: Sequence[Selection], ours: str, other: str, *, stored: bool = False) -> str:
    return f"  {ours} − {other}: {mean_in_words(lead_over(selected, ours, other, 'stored' if stored else 'float32'))}"


def _present(question: LeadQuestion, cells: Selection) -> tuple[str, ...]:
    """The other repairs that this study has."""
    return tuple(name for name in question.others if name in cells.study.scores.names)


def _over_all(question: LeadQuestion, cells: Selection) -> Iterator[str]:
    ours, curve = question.ours, question.curve
    yield f"all {_counted(cells, 'confirmation cells')}, in float32"
    yield from (_score([cells], name) for name in (ours, curve))
    yield from (_lead([cells], ours, name) for name in (curve, *_present(question, cells)))
    yield "in the dtype of the fine-tuned model, as `deltamend repair` writes it unless it is told"
    yield from _as_stored(question, [cells], (curve, question.paper))


def _counted(cells: Selection, what: str) -> str:
    return f"{len(cells.rows)} {what} of {len(set(cells.clusters))} clusters"


def _as_stored(question: LeadQuestion, selected: Sequence[Selection], others: Sequence[str]) -> Iterator[str]:
    yield from (_score(selected, name, stored=True) for name in (question.ours, *others))
    yield from (_lead(selected, question.ours, name, stored=True) for name in others)


def _by_regime(question: LeadQuestion, cells: Selection) -> Iterator[str]:
    for regime in regimes_of(cells):
        yield f"the same in {regime}"
        yield from _as_stored(question, [in_regime(cells, regime)], (question.curve, question.paper))


def _by_target(question: LeadQuestion, cells: Selection) -> Iterator[str]:
    yield f"the lead over {question.curve} in float32, by target"
    for target in dict.fromkeys(of.cell.target.name for of in cells.cells):
        own = cells.where(lambda of, target=target: of.cell.target.name == target)  # type: ignore[misc]
        yield f"  {target}: {mean_in_words(lead_over([own], question.ours, question.curve))}"


def _over_best_alphas(question: LeadQuestion, cells: Selection, choosing: Selection) -> Iterator[str]:
    best = best_by_regime(choosing, question.alphas)
    regimes = regimes_of(cells)
    if any(regime not in best for regime in regimes):
        yield "WiSE-FT at the alpha that was best in the choosing cells of a regime: not every regime has choosing cells"
        return
    listed = ", ".join(f"{best[regime].removeprefix('wise-ft-')} in {regime}" for regime in regimes)
    yield f"WiSE-FT at the alpha that was best in the choosing cells of a regime ({listed}), in float32"
    chosen = scores_by_cell(cells, [best[of.cell.regime.name] for of in cells.cells])
    yield f"  {mean_in_words(mean_over([(cells, chosen)]))}"
    gap = combined_scores(cells, question.ours).minus(chosen)
    yield f"  {question.ours} − that: {mean_in_words(mean_over([(cells, gap)]))}"


def _by_retention(question: LeadQuestion, cells: Selection) -> Iterator[str]:
    yield f"the lead over {question.curve} in float32 with retention measured on every target by"
    for words, scores in (
        ("right answers", partial(scores_by_retention, retention="exact_match")),
        ("their likelihood", partial(scores_by_retention, retention="likelihood")),
    ):
        gap = scores(cells, question.ours).minus(scores(cells, question.curve))
        yield f"  {words}: {mean_in_words(mean_over([(cells, gap)]))}"


def _without_largest(question: LeadQuestion, cells: Selection) -> Iterator[str]:
    leads = cluster_leads(cells, question.ours, question.curve)
    largest = max(leads, key=lambda cluster: leads[cluster])
    ahead = sum(lead > 0 for lead in leads.values())
    yield (
        f"without {largest}, where the lead over {question.curve} is {leads[largest]:.1f}; "
        f"it is ahead in {ahead} of {len(leads)} clusters"
    )
    yield _lead([cells.where(lambda of: of.cell.cluster != largest)], question.ours, question.curve)


def _not_seen(question: LeadQuestion, cells: Selection) -> Iterator[str]:
    """The cells that ran later than those of `question.seen`; nothing where that is all of them."""
    fresh = cells.where(lambda of: (of.cell.target.name, of.cell.regime.name, of.cell.seed) not in question.seen)
    if len(fresh.rows) == len(cells.rows):
        return
    ours, compared = question.ours, (question.curve, *_present(question, cells))
    looked_at = {of.cell.cluster for row, of in enumerate(cells.study.cells) if row not in fresh.rows}
    seen = sum(cluster in looked_at for cluster in set(fresh.clusters))
    yield (
        f"{_counted(fresh, 'confirmation cells')}, {'all' if looked_at.issuperset(fresh.clusters) else seen} of them seen "
        f"with other seeds, ran after {question.seen_when}; in float32"
    )
    yield from (_score([fresh], name) for name in (ours, *compared))
    yield from (_lead([fresh], ours, name) for name in compared)
    yield "the same as `deltamend repair` writes it"
    yield from _as_stored(question, [fresh], (question.curve, question.paper))
    on_cpu = fresh.where(lambda of: "NVIDIA" not in of.record.machine)
    seeds = sorted({of.cell.seed for of in fresh.cells if "NVIDIA" in of.record.machine})
    if seeds:
        which = f"all of seed {seeds[0]}" if len(seeds) == 1 else f"of seeds {', '.join(map(str, seeds))}"
        yield f"the same in float32, without the {len(fresh.rows) - len(on_cpu.rows)} cells that ran on a GPU, {which}"
        yield _lead([on_cpu], ours, question.curve)


def _over_both(question: LeadQuestion, selected: Sequence[Selection]) -> Iterator[str]:
    ours, later, stored = question.ours, question.later, (question.curve, question.paper, *question.published)
    clusters = {cluster for cells in selected for cluster in cells.clusters}
    count = sum(len(cells.rows) for cells in selected)
    yield f"all {count} confirmation cells of both studies, of {len(clusters)} clusters, in float32"
    others = (question.curve, question.alpha_too, question.paper, *question.published)
    yield from (_score(selected, name) for name in (ours, *others))
    yield from (_lead(selected, ours, name) for name in others)
    yield f"{later}, over the cells that had not been seen when it was picked, in float32"
    yield from (_lead(selected, later, name) for name in question.later_over)
    unseen = [of_clusters_never_seen(cells, later) for cells in selected]
    yield f"the same over the {sum(len(cells.rows) for cells in unseen)} cells of which no other seed had been seen either"
    yield from (_lead(unseen, later, name) for name in question.later_over)
    yield from _by_t(unseen, later, question.curve)
    gaps = [
        (cells, combined_scores(cells, later).minus(combined_scores(cells, question.paper, "stored")))
        for cells in selected
    ]
    yield f"  {later} − {question.paper} in the dtype of the fine-tuned model: {mean_in_words(mean_over(gaps))}"
    yield "the same in the dtype of the fine-tuned model"
    yield from _as_stored(question, selected, stored)
    for regime in regimes_of(selected[0]):
        yield f"in both studies in {regime}, in the dtype of the fine-tuned model"
        own = [in_regime(cells, regime) for cells in selected]
        yield from _as_stored(question, own, stored)
        yield from _by_t(own, ours, question.curve, written="stored")
    yield from _what_fp32_costs(selected, question.paper)


def _what_fp32_costs(selected: Sequence[Selection], name: str) -> Iterator[str]:
    """What a repair of models trained in bf16 loses by being written in float32."""
    own = [cells.where(lambda of: of.cell.regime.weights == "bfloat16") for cells in selected]
    parts = [
        (cells, combined_scores(cells, name, "stored").minus(combined_scores(cells, name)))
        for cells in own
        if cells.rows
    ]
    if parts:
        yield f"{name} written in bf16 minus written in float32, models trained in bf16"
        yield f"  {mean_in_words(mean_over(parts))}"


def _by_t(selected: Sequence[Selection], ours: str, other: str, written: Written = "float32") -> Iterator[str]:
    """The interval of a lead for cells like these by Student's t over clusters."""
    parts = [
        (cells, combined_scores(cells, ours, written).minus(combined_scores(cells, other, written)))
        for cells in selected
        if cells.rows
    ]
    found = over_clusters(parts) if parts else None
    if found is not None and found.low is not None and found.high is not None:
        yield f"  {ours} − {other}, by Student's t over {found.clusters} clusters: {found.value:.1f}, [{found.low:.1f}, {found.high:.1f}]"
