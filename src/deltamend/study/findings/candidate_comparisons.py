"""Candidates against the other repairs: as they are set, and every family at its best strength."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np

from deltamend.scoring.across_cells import MeanOverCells, cluster_means
from deltamend.scoring.metric import FloatArray
from deltamend.scoring.paired_cell import NONE_AND_REVERT
from deltamend.scoring.settings import Settings
from deltamend.scoring.significance import holm, wilcoxon
from deltamend.study.config import Study
from deltamend.study.findings.result_types import CHOOSING, CONFIRMATION, BestStrength, RepairComparison
from deltamend.study.findings.scored_cells import ReadCell, ScoresOfRepairs, scores_on_halves
from deltamend.study.repair_config import Repair, family_of, same_but_dtype


def comparisons(study: Study, scored: ScoresOfRepairs, rows: Sequence[int]) -> Iterable[RepairComparison]:
    """Every candidate against every other repair over some cells, each pair once."""
    against = {repair.name: role for repair in study.repairs if (role := _stands_as(study, repair)) is not None}
    candidates = [name for name, role in against.items() if role == "candidate"]
    pairs = [
        (name, other, role)
        for name in candidates
        for other, role in against.items()
        if other != name and not (role == "candidate" and candidates.index(other) < candidates.index(name))
    ]
    return _compared(scored, pairs, rows, CONFIRMATION) if rows else ()


def _stands_as(study: Study, repair: Repair) -> str | None:
    """The role in which candidates are compared with a repair, None for not at all.

    A published method is one in whatever dtype it is written, but only where it is written so in every cell: a difference
    over the cells of some regimes says nothing about the rest.
    """
    if repair.only_choosing:
        return None
    if repair.role != "dtype":
        return repair.role
    published = not repair.regimes and any(
        one.role == "published" and same_but_dtype(one, repair) for one in study.repairs
    )
    return "published" if published else None


def _compared(
    scored: ScoresOfRepairs, pairs: Sequence[tuple[str, str, str]], rows: Sequence[int], group: str
) -> Iterable[RepairComparison]:
    """Differences of (first, second, role of the second), with Holm's correction within a role."""
    raw = []
    for first, second, _ in pairs:
        values, _draws = scored.gap("combined", first, second, rows)
        raw.append(wilcoxon(list(cluster_means(values, [scored.clusters[row] for row in rows]).values())))
    corrected = [0.0] * len(pairs)
    for role in {against for *_, against in pairs}:
        places = [place for place, (*_, against) in enumerate(pairs) if against == role]
        for place, p in zip(places, holm([raw[place] for place in places]), strict=True):
            corrected[place] = p
    for (first, second, against), p, p_holm in zip(pairs, raw, corrected, strict=True):
        over = scored.difference("combined", first, second, rows)
        yield RepairComparison(
            group=group, first=first, second=second, against=against, p=p, p_holm=p_holm, **dict(over)
        )


def best_strengths(
    study: Study, cells: Sequence[ReadCell], scored: ScoresOfRepairs, groups: dict[str, list[int]], settings: Settings
) -> tuple[tuple[BestStrength, ...], tuple[RepairComparison, ...]]:
    """Families at strengths chosen elsewhere than they are reported, and their differences.

    The strengths that were tried in the choosing cells only are halved there: even items choose, odd ones report.
    """
    confirming, choosing = groups.get(CONFIRMATION, []), groups.get(CHOOSING, [])
    found: list[BestStrength] = []
    compared: list[RepairComparison] = []
    for group, rows in ((CONFIRMATION, confirming), (CHOOSING, choosing)):
        families = _families(study, only_choosing=group == CHOOSING)
        strengths, pairs = _halved(study, families, [cells[row] for row in rows], group, settings)
        found.extend(strengths)
        compared.extend(pairs)
    for name, members in _families(study, only_choosing=False).items() if confirming else ():
        best = _best_of(members, scored.values["combined"], scored, choosing)
        if best is not None:
            score = scored.over("combined", best[0], confirming)
            found.append(_best_strength(name, members, "choosing cells", CONFIRMATION, best, score))
    return tuple(found), tuple(compared)


def _families(study: Study, *, only_choosing: bool) -> dict[str, list[Repair]]:
    """Families of repairs that are made in every regime, or with `only_choosing` in every cell that is set apart for choosing."""
    families: dict[str, list[Repair]] = defaultdict(list)
    for repair in study.repairs:
        if repair.role == "dtype" or repair.regimes or repair.only_in or repair.method in NONE_AND_REVERT:
            continue
        if only_choosing or not repair.only_choosing:
            families[family_of(repair)].append(repair)
    return families


def _halved(
    study: Study, families: Mapping[str, list[Repair]], cells: Sequence[ReadCell], group: str, settings: Settings
) -> tuple[list[BestStrength], list[RepairComparison]]:
    """Families at the strength that was best on the even items of a group of cells, and on its odd ones their differences."""
    if not cells:
        return [], []
    on_even, on_odd = scores_on_halves(study, cells, settings)
    rows = list(range(len(cells)))
    found: list[BestStrength] = []
    ours: list[str] = []
    theirs: list[tuple[str, str]] = []
    for name, members in families.items():
        best = _best_of(members, on_even["combined"], on_odd, rows)
        if best is not None:
            score = on_odd.over("combined", best[0], rows)
            found.append(_best_strength(name, members, "even items", group, best, score))
            roles = [repair.role for repair in members]
            if "candidate" in roles:
                ours.append(best[0])
            else:  # strengths are those of a published method, where it is among them
                theirs.append((best[0], "published" if "published" in roles else roles[0]))
    pairs = [(first, second, role) for first in ours for second, role in theirs]
    return found, list(_compared(on_odd, pairs, rows, group))


def _best_of(
    members: Sequence[Repair], combined: FloatArray, scored: ScoresOfRepairs, rows: Sequence[int]
) -> tuple[str, float] | None:
    """The member with the highest mean over the clusters of the cells that have them all; None where there is none."""
    columns = [scored.names.index(repair.name) for repair in members]
    shared = [row for row in rows if not np.isnan(combined[row, columns]).any()]
    if not shared:
        return None
    clusters = [scored.clusters[row] for row in shared]
    means = [float(np.mean(list(cluster_means(combined[shared, column], clusters).values()))) for column in columns]
    best = int(np.argmax(means))
    return members[best].name, means[best]


def _best_strength(
    name: str,
    members: Sequence[Repair],
    chosen_on: Literal["even items", "choosing cells"],
    group: str,
    best: tuple[str, float],
    score: MeanOverCells,
) -> BestStrength:
    tried = tuple(repair.name for repair in members)
    chosen, chosen_by = best
    return BestStrength(
        family=name, chosen_on=chosen_on, group=group, tried=tried, chosen=chosen, chosen_by=chosen_by, score=score
    )
