"""One cell of a study: fine-tune a model, diagnose its update, repair it in every way, and evaluate every model. Work that is done is not repeated."""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from pydantic import ValidationError

from deltamend._api import repair
from deltamend.checkpoint.hashing import hash_folder
from deltamend.checkpoint.manifest import Manifest
from deltamend.diagnosis.groups import grouped
from deltamend.diagnosis.update import diagnose
from deltamend.evaluation.backend import best_device
from deltamend.machine.atomic import remove, write_whole
from deltamend.machine.digests import json_sha256
from deltamend.progress import Progress
from deltamend.study.activations import activations_of, target_activation_files, target_activations_of
from deltamend.study.base_model import Workplace, prepare_base, provenance
from deltamend.study.config import ModelEntry, Study, StudyCell, Target
from deltamend.study.exam import PreparedExam, evaluate_on_exam, prepare_exam
from deltamend.study.fine_tuning import finetune
from deltamend.study.machine_and_versions import machine_description, package_versions
from deltamend.study.questions import best_constant, exam_questions, training_questions
from deltamend.study.record_keys import model_keys
from deltamend.study.records import (
    BaseRecord,
    CellRecord,
    DiagnosisFacts,
    FinetuneFacts,
    ModelRecord,
    RepairFacts,
    base_file,
    cell_file,
    read_record,
    write_record,
)
from deltamend.study.repair_config import Repair
from deltamend.study.storage import adapter_facts, held_alone, write_in_dtype

_FINETUNING_SHARE = 0.3
"""Of a cell's time, for the bar."""


def evaluate_base(place: Workplace, model: ModelEntry, target: Target, progress: Progress) -> None:
    """Ask a base model what the models of one target are asked, unless it was asked before on this kind of device.

    Raises:
        DeltamendError: a step fails.
    """
    base = prepare_base(place, model)
    prepared = _prepared_exam(place, model, target, base)
    file = base_file(place.out, model.name, target.name, best_device())
    key = json_sha256([hash_folder(base), prepared.digest])
    found = read_record(file, BaseRecord)
    if found is not None and found.key == key:
        return
    progress("base", 0.0)
    evaluation = evaluate_on_exam(base, prepared, place.study.exam_of(model), safety=True)
    evaluation = evaluation.model_copy(update={"model": model.name})
    file.parent.mkdir(parents=True, exist_ok=True)
    write_record(
        BaseRecord(
            key=key,
            evaluation=evaluation,
            versions=package_versions(),
            machine=machine_description(),
            source=provenance(model),
        ),
        file,
    )


@dataclass(frozen=True)
class TunedFolders:
    """Where a fine-tuned model lies.

    Attributes:
        trained: what training gave, in the dtype in which its weights were held.
        model: the same as the cell's regime writes it; that folder itself where the two dtypes are one.
        adapter: the adapter, of a regime that trains one.
    """

    trained: Path
    model: Path
    adapter: Path


def tuned_folder(place: Workplace, cell: StudyCell, base: Path) -> TunedFolders:
    """The folders of a cell's fine-tuned model, whether they are there or not; regimes that share a training share them."""
    trained = place.model_folder(
        f"{cell.model.name}/{cell.target.name}/{cell.seed}-{_training_key(place, cell, base)[:8]}"
    )
    dtype = cell.regime.written
    model = trained if dtype == cell.regime.weights else trained.with_name(f"{trained.name}-{dtype}")
    return TunedFolders(trained, model, trained.with_name(f"{trained.name}-adapter"))


def run_cell(place: Workplace, cell: StudyCell, progress: Progress) -> None:
    """Do what is left to do of one cell; the record is written after every model.

    Raises:
        DeltamendError: a step fails; what was done before is kept.
    """
    study = place.study
    base = prepare_base(place, cell.model)
    prepared = _prepared_exam(place, cell.model, cell.target, base)
    key = finetuning_key(place, cell, base)
    file = cell_file(place.out, cell.name)
    file.parent.mkdir(parents=True, exist_ok=True)
    record = read_record(file, CellRecord)
    if record is not None and record.key != key:
        record = None
    wanted = model_keys(study, cell, key, prepared.digest)
    tuned = tuned_folder(place, cell, base)
    if record is not None and _still_to_ask(record, wanted) == []:
        _discard_finetuned(study, tuned)  # a run that was killed may not have come to it
        return
    record = _with_finetuned(place, cell, base, key, record, progress)
    repairs = {repair.name: repair for repair in study.repairs_of(cell)}
    waiting = _still_to_ask(record, wanted)
    with _scratch(place) as scratch:
        for done, name in enumerate(waiting):
            started = time.monotonic()
            progress(name, _FINETUNING_SHARE + (1 - _FINETUNING_SHARE) * done / len(waiting))
            facts, model = None, tuned.model
            if name != "finetuned":
                model = scratch / name
                files = _activation_files(place, cell, base, tuned, repairs[name])
                facts = _repaired(base, tuned.model, model, repairs[name], files)
            safety = name == "finetuned" or repairs[name].safety
            evaluation = evaluate_on_exam(
                model, prepared, study.exam_of(cell.model), safety=safety, form=name == "finetuned"
            )
            asked = ModelRecord(
                key=wanted[name],
                exam=prepared.digest,
                facts=facts,
                evaluation=evaluation.model_copy(update={"model": name}),
                seconds=time.monotonic() - started,
            )
            known = _of_this_exam(record, wanted, prepared) | {name: asked}
            ordered = [one for one in (*wanted, *known) if one in known]
            record = record.model_copy(update={"models": {one: known[one] for one in ordered}})
            write_record(record, file)
            if model != tuned.model:
                shutil.rmtree(model)
    _discard_finetuned(study, tuned)


def _discard_finetuned(study: Study, tuned: TunedFolders) -> None:
    if study.keep_finetuned:
        return
    _facts_file(tuned.trained).unlink(missing_ok=True)  # first, as facts must never be those of another model
    for folder in {tuned.model, tuned.trained, tuned.adapter}:
        if folder.exists():
            remove(folder)
    for file in target_activation_files(tuned.model):
        file.unlink()


def _facts_file(tuned: Path) -> Path:
    """What is known of a fine-tuned model, as long as it is there."""
    return tuned.with_name(f"{tuned.name}.json")


def _facts_of(tuned: Path) -> FinetuneFacts | None:
    """None of a model that is not there, or is of a run that was cut off before its facts were written."""
    try:
        return FinetuneFacts.model_validate_json(_facts_file(tuned).read_bytes()) if tuned.exists() else None
    except (FileNotFoundError, ValidationError):
        return None


def finetuning_key(place: Workplace, cell: StudyCell, base: Path) -> str:
    """Hash of all that decides the fine-tuned model of a cell."""
    trained = _training_key(place, cell, base)
    return trained if cell.regime.written == cell.regime.weights else json_sha256([trained, cell.regime.written])


def _training_key(place: Workplace, cell: StudyCell, base: Path) -> str:
    """Hash of all that decides what training gives, in whatever dtype that is written."""
    questions = [(one.question, one.answer) for one in training_questions(cell.target, place.data)]
    return json_sha256([hash_folder(base), questions, cell.training.what_trains(), cell.seed])


def _still_to_ask(record: CellRecord, wanted: dict[str, str]) -> list[str]:
    return [name for name, key in wanted.items() if name not in record.models or record.models[name].key != key]


def _of_this_exam(record: CellRecord, wanted: dict[str, str], prepared: PreparedExam) -> dict[str, ModelRecord]:
    """Models that need not be asked again, and those that the study no longer has but that sat the same exam."""
    return {
        name: found
        for name, found in record.models.items()
        if (found.key == wanted[name] if name in wanted else found.exam == prepared.digest)
    }


def _prepared_exam(place: Workplace, model: ModelEntry, target: Target, base: Path) -> PreparedExam:
    folder = place.out / "exams" / model.name / target.name
    return prepare_exam(place.study.name, place.study.exam_of(model), target, base, place.data, folder)


def _with_finetuned(
    place: Workplace, cell: StudyCell, base: Path, key: str, record: CellRecord | None, progress: Progress
) -> CellRecord:
    """The cell's record with its fine-tuned model on the disk; a model that came out otherwise than before empties it."""
    tuned = tuned_folder(place, cell, base)
    with held_alone(place.out / ".locks" / tuned.trained.name):  # regimes may share one training
        facts = _trained(place, cell, base, tuned, progress)
        if tuned.model != tuned.trained and not tuned.model.exists():
            write_in_dtype(tuned.trained, tuned.model, cell.regime.written)
    if tuned.model != tuned.trained:
        facts = facts.model_copy(update={"model_hash": hash_folder(tuned.model).weights or ""})
    if record is not None and record.finetune.model_hash == facts.model_hash:
        return record
    progress("looking at the update", _FINETUNING_SHARE)
    seen = _diagnosed(base, tuned.model)
    return CellRecord(
        cell=cell.name,
        key=key,
        finetune=facts,
        diagnosis=seen,
        models={},
        versions=package_versions(),
        machine=machine_description(),
        base_source=provenance(cell.model),
        best_constant=best_constant(exam_questions(cell.target, place.data)),
    )


def _trained(place: Workplace, cell: StudyCell, base: Path, tuned: TunedFolders, progress: Progress) -> FinetuneFacts:
    """What training gave, now or before."""
    facts = _facts_of(tuned.trained)
    if facts is not None:
        return facts
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1
        progress("fine-tuning", _FINETUNING_SHARE * steps / cell.training.steps)

    if tuned.model != tuned.trained and tuned.model.exists():
        remove(tuned.model)  # of another training
    questions = training_questions(cell.target, place.data)
    kept = tuned.adapter if cell.regime.trains_adapter else None
    facts = finetune(base, questions, cell.training, tuned.trained, seed=cell.seed, advance=step, adapter=kept)
    if kept is not None:
        facts = facts.model_copy(update={"adapter": adapter_facts(base, kept, tuned.trained)})
    write_whole(_facts_file(tuned.trained), facts.model_dump_json())
    return facts


def _diagnosed(base: Path, tuned: Path) -> DiagnosisFacts:
    found = diagnose(base, tuned, workers=1)
    whole = grouped(found.matrices, lambda _: "all")[0][0]
    distances = [matrix.bulk.ks for matrix in found.matrices if matrix.bulk is not None]
    zeros = [matrix.size if matrix.entries is None else matrix.entries.zeros * matrix.size for matrix in found.matrices]
    return DiagnosisFacts(
        verdict=found.verdict,
        verdicts={str(verdict): count for verdict, count in sorted(found.verdicts.items())},
        median_ks=median(distances) if distances else None,
        zeros=math.fsum(zeros) / sum(matrix.size for matrix in found.matrices),
        kept_energy=1.0 if whole.energy is None else min(1.0, whole.energy),
        kept_rank=1.0 if whole.rank is None else whole.rank,
        relative_size=whole.relative_norm or 0.0,
    )


def _activation_files(
    place: Workplace, cell: StudyCell, base: Path, tuned: TunedFolders, wanted: Repair
) -> dict[str, str]:
    """The files of activations that a repair goes by, by the names of its parameters; made where they are not there yet."""
    files = {}
    if wanted.needs_activations:
        files["activations"] = str(activations_of(place, cell.model, base))
    if wanted.target_texts is not None:
        files["target_activations"] = str(target_activations_of(place, cell.target, tuned.model, wanted))
    return files


def _repaired(base: Path, tuned: Path, out: Path, wanted: Repair, activations: dict[str, str]) -> RepairFacts:
    report = repair(
        base,
        tuned,
        out,
        method=wanted.method,
        parameters={**wanted.parameters, **activations},
        rules=wanted.rules,
        vectors=wanted.vectors,
        rounding=wanted.rounding,
        out_dtype=None if wanted.out_dtype == "stored" else wanted.out_dtype,
        device=best_device(),
        workers=1,
    )
    manifest: Manifest = report.manifest
    ranks = [
        (one.spectrum.rank / min(one.shape), math.prod(one.shape)) for one in report.tensors if one.spectrum is not None
    ]
    return RepairFacts(
        method=described(wanted),
        kept_energy=manifest.kept_energy,
        realised_error=manifest.realised_error,
        realised_energy=_energy((one.realised_norm, one.delta_norm) for one in report.tensors),
        kept_rank=math.fsum(rank * size for rank, size in ranks) / sum(size for _, size in ranks) if ranks else None,
        seconds=manifest.run.seconds,
    )


def described(wanted: Repair) -> str:
    """Method and parameters of a repair, and what its rules do otherwise."""
    messages = [wanted.method, *(f"{name}={value}" for name, value in wanted.parameters.items())]
    if (texts := wanted.finetuned_texts) is not None:
        messages.append(f"texts={texts.samples}x{texts.tokens}")
    for rule in wanted.rules:
        chosen = rule.model_dump(include={"filter", "layers", "kind"}, exclude_none=True)
        where = " ".join(f"{name} {value}" for name, value in chosen.items())
        what = " ".join([rule.method or "", *(f"{name}={value}" for name, value in rule.parameters.items())]).strip()
        messages.append(f"({where}: {what})")
    return " ".join(messages)


def _energy(norms: Iterable[tuple[float | None, float | None]]) -> float:
    """Σ realised²/Σ delta² of (realised, delta) norms; 1 where nothing changed."""
    pairs = [(realised or 0.0, delta or 0.0) for realised, delta in norms]
    total = math.fsum(delta**2 for _, delta in pairs)
    return math.fsum(realised**2 for realised, _ in pairs) / total if total else 1.0


@contextmanager
def _scratch(place: Workplace) -> Iterator[Path]:
    """A folder for one cell's repaired models, on the study's own disk."""
    place.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".cell-", dir=place.out) as folder:
        yield Path(folder)
