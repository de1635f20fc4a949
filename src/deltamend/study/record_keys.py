"""Hashes of everything that the scores of a study's models depend on: by these a run and a report tell what is done already."""

from __future__ import annotations

from deltamend.machine.digests import json_sha256
from deltamend.study.config import Study, StudyCell
from deltamend.study.records import FINETUNED, CellRecord
from deltamend.study.repair_config import OWN, TRAINING, TRAINING_EXAMPLES


def model_keys(study: Study, cell: StudyCell, key: str, exam: str) -> dict[str, str]:
    """Of the fine-tuned model and each repair of a cell: a hash of all that decides its figures.

    Args:
        study: its configuration.
        cell: of its grid.
        key: of the cell, as its record has it: a hash of all that decides the fine-tuned model.
        exam: hash of all questions and of how they are asked.
    """
    keys = {FINETUNED: json_sha256([key, exam])}
    for one in study.repairs_of(cell):
        written: list[object] = [study.own_texts.model_dump()] if one.needs_activations else []
        if one.target_texts == OWN:
            written.append({"target": (one.finetuned_texts or study.own_texts).model_dump()})
        if one.target_texts == TRAINING:
            written.append({"target": TRAINING_EXAMPLES})
        keys[one.name] = json_sha256([key, exam, one.what_decides(), *written])
    return keys


def done_repairs(study: Study, cell: StudyCell, record: CellRecord) -> tuple[str, ...]:
    """The repairs of a record that were made as the configuration says, in its order, and sat the fine-tuned model's exam.

    Whether fine-tuning and exam are those of the configuration, only a run can tell: their hashes are over the base and
    the items, and are taken here as the record has them.
    """
    if FINETUNED not in record.models:
        return ()
    wanted = model_keys(study, cell, record.key, record.models[FINETUNED].exam)
    known = [name for name in wanted if name != FINETUNED and name in record.models]
    return tuple(name for name in known if record.models[name].key == wanted[name])
