"""Write the files of the output that are not weights: copied files, the config, the index and the model card."""

from __future__ import annotations

import json
from collections.abc import Mapping

from deltamend.checkpoint.dtypes import CONFIG_NAMES
from deltamend.checkpoint.file_names import (
    ADAPTER_FILE,
    CARD_FILE,
    CONFIG_FILE,
    FINETUNED_CARD_FILE,
    INDEX_FILE,
    MANIFEST_FILE,
)
from deltamend.checkpoint.hashing import hash_file
from deltamend.checkpoint.manifest import FileRecord, Manifest
from deltamend.checkpoint.model_card import license_of_card, render_model_card
from deltamend.checkpoint.publishing import WorkFolder
from deltamend.repairing.plan import RepairPlan


def write_sidecars(plan: RepairPlan, work: WorkFolder, manifest: Manifest) -> list[FileRecord]:
    """Write every file of the output except the weights and the manifest.

    Returns:
        The files that were written, with their hashes.
    """
    own_card, license_name = None, None
    copied: dict[str, FileRecord] = {}
    for sidecar in plan.sidecars:
        dtype = plan.options.dtype_name
        if sidecar.name == CONFIG_FILE and (dtype is not None or plan.finetuned.config_altered):
            work.write_file(CONFIG_FILE, _config_with_dtype(plan.finetuned.config, dtype))
        else:
            copied[sidecar.name] = work.copy_file(sidecar)
        if sidecar.name == FINETUNED_CARD_FILE:
            own_card = sidecar.name
            license_name = license_of_card(work.staged / sidecar.name)
    if plan.layout.index is not None and plan.adapter is None:
        work.write_file(INDEX_FILE, plan.layout.index.encode())
    work.write_file(CARD_FILE, render_model_card(manifest, own_card=own_card, license_name=license_name).encode())
    weights = {ADAPTER_FILE} if plan.adapter else {shard.file for shard in plan.layout.shards}
    staged = sorted(path for path in work.staged.rglob("*") if path.is_file())
    names = [path.relative_to(work.staged).as_posix() for path in staged]
    return [
        copied.get(name) or hash_file(path, name)
        for path, name in zip(staged, names, strict=True)
        if name not in {*weights, MANIFEST_FILE}
    ]


def _config_with_dtype(config: Mapping[str, object], dtype: str | None) -> bytes:
    """The content of config.json with the dtype that the weights now have.

    Before version 5 transformers called the field `torch_dtype`; a config that has it keeps that name.
    """
    field = "torch_dtype" if "torch_dtype" in config and "dtype" not in config else "dtype"
    stated = {} if dtype is None else {field: CONFIG_NAMES[dtype]}
    return (json.dumps({**config, **stated}, indent=2) + "\n").encode()
