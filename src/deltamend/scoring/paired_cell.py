"""Records of base, fine-tuned and repaired models, read and put side by side."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deltamend.errors import EvaluationError, UsageError, option
from deltamend.evaluation.record import Evaluation, read_evaluation
from deltamend.scoring.inspect_logs import is_inspect_log, read_inspect_logs
from deltamend.scoring.lm_eval_folder import is_lm_eval_run, read_lm_eval_folder
from deltamend.scoring.paired_items import PairedTask, pair_tasks

Source = str | os.PathLike[str] | Evaluation
"""An evaluation, the file of one, a folder or results file of lm-eval, or a log of inspect or a folder of its logs."""

NONE_AND_REVERT = NONE, REVERT = ("none", "revert")
"""Two repairs that are always scored as well: `none`, the fine-tuned model itself, and `revert`, the base."""

_RESERVED = ("base", "finetuned", *NONE_AND_REVERT)


@dataclass(frozen=True)
class PairedCell:
    """One cell: a base model, its fine-tuned descendant and repairs of it, with their scores on the same items.

    Attributes:
        name: the cell's name.
        models: `base`, `finetuned`, then each method, to the model's own name: the columns of every task.
        target: the task that was fine-tuned for.
        benchmarks: all others.
        notes: sentences on what was chosen or left out.
    """

    name: str
    models: dict[str, str]
    target: PairedTask
    benchmarks: tuple[PairedTask, ...]
    notes: tuple[str, ...]

    @property
    def methods(self) -> list[str]:
        """The repaired models, then `none` and `revert`."""
        return [*list(self.models)[2:], *NONE_AND_REVERT]

    @property
    def tasks(self) -> tuple[PairedTask, ...]:
        """The target, then the benchmarks."""
        return (self.target, *self.benchmarks)


def open_cell(
    base: Source,
    finetuned: Source,
    repaired: Mapping[str, Source],
    *,
    target: str,
    target_files: Mapping[str, Source] | None = None,
    benchmarks: Sequence[str] | None = None,
    metrics: Mapping[str, str] | None = None,
    common_items: bool = False,
    name: str = "",
) -> PairedCell:
    """Read and pair the records of one cell; arguments as in `deltamend.score`.

    Raises:
        EvaluationError: a record cannot be read, or the models were not asked the same.
        UsageError: a repair's name has another meaning, or files are missing for the target.
    """
    for method in repaired:
        if method in _RESERVED or not method or not method.isprintable():
            raise UsageError(
                f"{option('repaired')}: {method!r} cannot name a repair ({', '.join(_RESERVED)} have a meaning of their own); take another"
            )
    sources: dict[str, Source] = {"base": base, "finetuned": finetuned, **repaired}
    notes: list[str] = []
    others = [target] if target_files is None else []
    names = None if benchmarks is None else [*others, *(task for task in benchmarks if task != target)]
    records = _read_all(sources, metrics, names, notes)
    left_out = None if target_files is None else target
    tasks, said = pair_tasks(records, names, left_out=left_out, common_items=common_items)
    notes += said
    if target_files is not None:
        if set(target_files) != set(sources):
            raise UsageError(f"{option('target_files')}: give one for each of {', '.join(sources)}")
        separate = _read_all({model: target_files[model] for model in sources}, metrics, [target], notes)
        paired, said = pair_tasks(separate, [target], common_items=common_items)
        notes += said
        tasks |= paired
    if target not in tasks:
        raise EvaluationError(
            f"task {target!r}: is the target and not in every record (there are: {', '.join(sorted(tasks))}); "
            f"name one of these, or give {option('target_files')}"
        )
    held_out = tuple(task for key, task in sorted(tasks.items()) if key != target)
    if not held_out:
        raise EvaluationError(
            f"there is no task beside the target {target!r}; evaluate benchmarks that the model was not fine-tuned for"
        )
    notes += _same_weights(records)
    models = {model: record.model for model, record in records.items()}
    for model, named in models.items():
        if not named.isprintable():
            raise EvaluationError(
                f"{model}: its record calls the model {named!r}, with characters that cannot be shown; remove them"
            )
    return PairedCell(
        name or Path(models["finetuned"]).name, models, tasks[target], held_out, tuple(dict.fromkeys(notes))
    )


def _same_weights(records: Mapping[str, Evaluation]) -> list[str]:
    """Sentences on models whose weight files are the same, by their hash."""
    by_hash: dict[str, list[str]] = {}
    for model, record in records.items():
        if record.model_hash is not None:
            by_hash.setdefault(record.model_hash, []).append(model)
    return [f"{' and '.join(models)} have the same weights" for models in by_hash.values() if len(models) > 1]


def _differing_settings(records: Mapping[str, Evaluation]) -> list[str]:
    """Sentences on models that were not evaluated in the same way as the base, such as with another judge."""
    first, *others = records.items()
    _, base = first
    return [
        f"{model} was evaluated with {setting} {record.settings.get(setting, 'unknown')}, "
        f"the base with {setting} {base.settings.get(setting, 'unknown')}"
        for model, record in others
        for setting in sorted(base.settings.keys() | record.settings.keys())
        if record.settings.get(setting) != base.settings.get(setting)
    ]


def _read_all(
    sources: Mapping[str, Source],
    metrics: Mapping[str, str] | None,
    wanted: Collection[str] | None,
    notes: list[str],
) -> dict[str, Evaluation]:
    """The record of every model; of folders with many tasks only the wanted ones are judged, None for all."""
    records = {}
    for model, source in sources.items():
        if isinstance(source, Evaluation):
            records[model] = source
        elif is_inspect_log(Path(source)):
            records[model], said = read_inspect_logs(Path(source), metrics, wanted)
            notes += said
        elif is_lm_eval_run(Path(source)):
            records[model], said = read_lm_eval_folder(Path(source), metrics, wanted)
            notes += said
        else:
            records[model] = read_evaluation(Path(source))
    notes += _differing_settings(records)
    return records
