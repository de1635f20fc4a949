"""The records of a study as arrays: every figure of every repair in every cell, as it is and in every draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from deltamend.errors import DeltamendError, EvaluationError
from deltamend.evaluation.record import Evaluation
from deltamend.scoring.across_cells import MeanOverCells, mean_over_cells
from deltamend.scoring.cell_means import draw_cells, observed_means
from deltamend.scoring.metric import PARTS, FloatArray, Means, parts_of
from deltamend.scoring.paired_cell import NONE, NONE_AND_REVERT, PairedCell, open_cell
from deltamend.scoring.paired_items import PairedTask
from deltamend.scoring.settings import Settings
from deltamend.study.config import Study, StudyCell
from deltamend.study.findings.result_types import GridCoverage, MissingCell, PartsOver
from deltamend.study.record_keys import done_repairs
from deltamend.study.records import (
    FINETUNED,
    TARGET,
    TARGET_LIKELIHOOD,
    BaseRecord,
    CellRecord,
    RepairFacts,
    base_file,
    cell_file,
    device_of,
    read_record,
)


@dataclass(frozen=True)
class ReadCell:
    """One cell whose records are there.

    Attributes:
        cell: of the grid.
        record: of its fine-tuned model and those repairs.
        base: of its base model.
        repairs: those that are done, in the order of the configuration.
        paired: all models on the benchmarks, the target as the configuration measures it.
        other: the target measured in the other way.
    """

    cell: StudyCell
    record: CellRecord
    base: BaseRecord
    repairs: tuple[str, ...]
    paired: PairedCell
    other: PairedTask

    def facts(self, name: str) -> RepairFacts:
        """What a repair did to the weights.

        Raises:
            EvaluationError: the record does not say.
        """
        facts = self.record.models[name].facts
        if facts is None:
            raise EvaluationError(
                f"cell {self.cell.name}: the record of {name} does not say what the repair did; run it again"
            )
        return facts

    def size(self, name: str) -> float:
        """‖written − W_base‖/‖Δ‖ of a repair, or of a trivial one."""
        if name in NONE_AND_REVERT:
            return 1.0 if name == NONE else 0.0
        return float(np.sqrt(self.facts(name).realised_energy))


@dataclass(frozen=True)
class ScoresOfRepairs:
    """Figures of all repairs in all cells.

    Attributes:
        names: of the K repairs, in the order of the configuration, then `none` and `revert`.
        clusters: of each of the C cells.
        values: part of the metric to (C, K), NaN where it is undefined or the repair is missing.
        draws: part of the metric to (D, C, K), the same in every draw of the items.
        settings: of the draws.
    """

    names: tuple[str, ...]
    clusters: tuple[str, ...]
    values: dict[str, FloatArray]
    draws: dict[str, FloatArray]
    settings: Settings

    def at(self, part: str, name: str, cells: Sequence[int]) -> tuple[FloatArray, FloatArray]:
        """(n,) and (D, n) of one repair in some cells."""
        column = self.names.index(name)
        return self.values[part][cells, column], self.draws[part][:, cells, column]

    def over(self, part: str, name: str, cells: Sequence[int]) -> MeanOverCells:
        """Its mean over clusters of some cells."""
        return self.mean(*self.at(part, name, cells), cells)

    def parts_over(self, name: str, cells: Sequence[int]) -> PartsOver:
        """The same of every part."""
        return PartsOver(**{part: self.over(part, name, cells) for part in PARTS})

    def difference(self, part: str, first: str, second: str, cells: Sequence[int]) -> MeanOverCells:
        """Mean over clusters of a paired difference."""
        return self.mean(*self.gap(part, first, second, cells), cells)

    def gap(self, part: str, first: str, second: str, cells: Sequence[int]) -> tuple[FloatArray, FloatArray]:
        """(n,) and (D, n) of the first minus the second."""
        (ours, ours_drawn), (theirs, theirs_drawn) = self.at(part, first, cells), self.at(part, second, cells)
        return ours - theirs, ours_drawn - theirs_drawn

    def mean(self, values: FloatArray, draws: FloatArray, cells: Sequence[int]) -> MeanOverCells:
        """Mean over clusters of (n,) values of some cells, with their (D, n) draws."""
        return mean_over_cells(values, draws, [self.clusters[index] for index in cells], self.settings)


def read_study_cells(study: Study, out: Path) -> tuple[list[ReadCell], GridCoverage]:
    """What is there of a study's cells, and what is not; a repair that was made with other settings is not.

    Raises:
        EvaluationError: a record is damaged, or its models were not asked the same.
    """
    bases: dict[Path, BaseRecord | None] = {}
    found: list[ReadCell] = []
    missing: list[MissingCell] = []
    lacking: dict[str, tuple[str, ...]] = {}
    unknown: dict[str, tuple[str, ...]] = {}
    planned = {cell.name for cell in study.planned_cells()}
    for cell in study.cells():
        record = read_record(cell_file(out, cell.name), CellRecord)
        if record is None and cell.name not in planned:
            continue
        if record is None or FINETUNED not in record.models:
            reason = "not begun" if record is None else "the fine-tuned model is not evaluated yet"
            missing.append(MissingCell(cell=cell.name, reason=reason))
            continue
        base = _base_beside(out, cell, record.models[FINETUNED].evaluation, bases)
        if base is None:
            missing.append(MissingCell(cell=cell.name, reason="the base model is not evaluated yet"))
            continue
        wanted = [repair.name for repair in study.repairs_of(cell)]
        done = done_repairs(study, cell, record)
        if len(done) < len(wanted):
            lacking[cell.name] = tuple(name for name in wanted if name not in done)
        strays = tuple(name for name in record.models if name != FINETUNED and name not in done)
        if strays:
            unknown[cell.name] = strays
        scored = record.model_copy(update={"models": {name: record.models[name] for name in (FINETUNED, *done)}})
        found.append(_paired(study, cell, scored, base, done))
    progress = GridCoverage(
        planned=len(found) + len(missing),
        scored=len(found),
        missing=tuple(missing),
        missing_repairs=lacking,
        unknown_repairs=unknown,
    )
    return found, progress


def _base_beside(
    out: Path, cell: StudyCell, finetuned: Evaluation, known: dict[Path, BaseRecord | None]
) -> BaseRecord | None:
    """The cell's base as asked on the device of its fine-tuned model; as asked on the CPU where that is not there."""
    for device in (device_of(finetuned), "cpu"):
        path = base_file(out, cell.model.name, cell.target.name, device)
        if path not in known:
            known[path] = read_record(path, BaseRecord)
        if known[path] is not None:
            return known[path]
    return None


def _paired(study: Study, cell: StudyCell, record: CellRecord, base: BaseRecord, repairs: tuple[str, ...]) -> ReadCell:
    target, other = TARGET, TARGET_LIKELIHOOD
    if cell.target.retention == "likelihood":
        target, other = other, target
    try:
        opened = open_cell(
            base.evaluation,
            record.models[FINETUNED].evaluation,
            {name: record.models[name].evaluation for name in repairs},
            target=target,
            benchmarks=[*study.exam_of(cell.model).benchmarks, other],
            name=cell.name,
        )
    except DeltamendError as error:
        raise EvaluationError(f"cell {cell.name}: {error}") from error

    def of_this_target(task: PairedTask) -> PairedTask:
        # Tasks of one name are drawn together, and the targets' items have nothing to do with one another.
        return replace(task, name=f"{task.name} {cell.target.name}")

    aside = next(task for task in opened.benchmarks if task.name == other)
    benchmarks = tuple(task for task in opened.benchmarks if task is not aside)
    paired = replace(opened, target=of_this_target(opened.target), benchmarks=benchmarks)
    return ReadCell(cell, record, base, repairs, paired, of_this_target(aside))


def scores_of_repairs(
    study: Study, cells: Sequence[ReadCell], settings: Settings
) -> tuple[ScoresOfRepairs, ScoresOfRepairs]:
    """All figures, the target measured as the configuration says, and in the other way."""
    # The other target rides along as the last benchmark, so that each task is drawn once.
    wide = [replace(of.paired, benchmarks=(*of.paired.benchmarks, of.other)) for of in cells]
    drawn = draw_cells(wide, settings)[1]
    seen = [observed_means(cell, settings) for cell in wide]
    return (
        _sample(study, cells, [_narrow(of) for of in seen], [_narrow(of) for of in drawn], settings),
        _sample(study, cells, [_swapped(of) for of in seen], [_swapped(of) for of in drawn], settings),
    )


def scores_on_halves(
    study: Study, cells: Sequence[ReadCell], settings: Settings
) -> tuple[dict[str, FloatArray], ScoresOfRepairs]:
    """Values on the even items, to choose by, and all figures on the odd ones, to report.

    Items are counted in the order of their ids, task by task.

    Returns:
        Part of the metric to (C, K) on the even items, and the sample on the odd ones.
    """
    even, odd = ([half_of(of.paired, start) for of in cells] for start in (0, 1))
    chosen_by = _values(study, cells, [observed_means(cell, settings) for cell in even])
    seen = [observed_means(cell, settings) for cell in odd]
    return chosen_by, _sample(study, cells, seen, draw_cells(odd, settings)[1], settings)


def half_of(cell: PairedCell, start: int) -> PairedCell:
    """Every second item of every task, in the order of their ids, from the first or the second on."""

    def half(task: PairedTask) -> PairedTask:
        if len(task.ids) < 2:
            raise EvaluationError(f"cell {cell.name}: task {task.name!r} has one item and cannot be halved; ask more")
        return replace(task, ids=task.ids[start::2], scores=task.scores[start::2])

    return replace(cell, target=half(cell.target), benchmarks=tuple(half(task) for task in cell.benchmarks))


def _narrow(means: Means) -> Means:
    """Without the last benchmark."""
    return replace(
        means,
        base=means.base[..., :-1],
        finetuned=means.finetuned[..., :-1],
        repaired=means.repaired[..., :-1],
        margin=means.margin[..., :-1],
    )


def _swapped(means: Means) -> Means:
    """With the last benchmark as the target."""
    return replace(
        _narrow(means),
        target_base=means.base[..., -1],
        target_finetuned=means.finetuned[..., -1],
        target_repaired=means.repaired[..., -1],
        target_margin=means.margin[..., -1],
    )


def all_names(study: Study) -> tuple[str, ...]:
    """The repairs of a study, then the trivial ones."""
    return (*(repair.name for repair in study.repairs), *NONE_AND_REVERT)


def _columns(names: Sequence[str], of: ReadCell) -> list[int]:
    return [names.index(name) for name in (*of.repairs, *NONE_AND_REVERT)]


def _values(study: Study, cells: Sequence[ReadCell], seen: Sequence[Means]) -> dict[str, FloatArray]:
    names = all_names(study)
    values = {part: np.full((len(cells), len(names)), np.nan) for part in PARTS}
    for row, (of, means) in enumerate(zip(cells, seen, strict=True)):
        parts = parts_of(means)
        for part in PARTS:
            values[part][row, _columns(names, of)] = getattr(parts, part)
    return values


def _sample(
    study: Study, cells: Sequence[ReadCell], seen: Sequence[Means], drawn: Sequence[Means], settings: Settings
) -> ScoresOfRepairs:
    names = all_names(study)
    draws = {part: np.full((settings.draws, len(cells), len(names)), np.nan) for part in PARTS}
    for row, (of, observed, means) in enumerate(zip(cells, seen, drawn, strict=True)):
        parts = parts_of(means, observed)
        for part in PARTS:
            draws[part][:, row, _columns(names, of)] = getattr(parts, part)
    clusters = tuple(of.cell.cluster for of in cells)
    return ScoresOfRepairs(names, clusters, _values(study, cells, seen), draws, settings)
