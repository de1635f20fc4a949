"""Upload a repaired checkpoint or adapter to the Hugging Face hub, after it was checked against its recorded hashes."""

from __future__ import annotations

import glob
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deltamend.checkpoint.file_names import ADAPTER_CONFIG_FILE, MANIFEST_FILE
from deltamend.checkpoint.json_file import read_json
from deltamend.checkpoint.manifest import FileRecord, decode_manifest
from deltamend.checkpoint.verification import verify
from deltamend.errors import OutputError, UsageError

if TYPE_CHECKING:
    from huggingface_hub import HfApi


@dataclass(frozen=True)
class Upload:
    """What is to be uploaded.

    Attributes:
        folder: OUT.
        repo: `org/name`.
        private: whether only its owners may see it.
        files: every file of OUT, with its size.
        local_base: the base that an adapter names, where that is a path on this machine, which others cannot load; else None.
    """

    folder: Path
    repo: str
    private: bool
    files: tuple[FileRecord, ...]
    local_base: str | None

    @property
    def nbytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


def plan_upload(folder: str | os.PathLike[str], repo: str, *, private: bool = True) -> Upload:
    """Verify OUT and list what would be uploaded; nothing leaves the machine.

    Raises:
        UsageError: `repo` is not of the form `org/name`.
        CheckpointError: OUT has no readable deltamend.json, or an adapter_config.json that cannot be read.
        OutputError: OUT differs from its recorded hashes.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # exported, but not in __all__

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UsageError(f"{repo!r} is not the name of a repository ({error}); give org/name") from error
    if "/" not in repo:
        raise UsageError(f"{repo!r} is not the name of a repository; give org/name")
    path = Path(folder)
    if faults := verify(path):
        raise OutputError(f"{path}: differs from its recorded hashes ({faults[0]}); repair again before you push it")
    manifest_text = (path / MANIFEST_FILE).read_bytes()
    own = FileRecord(name=MANIFEST_FILE, size=len(manifest_text), sha256="")
    return Upload(path, repo, private, (*decode_manifest(manifest_text).files, own), _local_base(path))


def upload(plan: Upload, api: HfApi | None = None) -> str:
    """Create the repository where there is none, and upload OUT in one commit.

    The token is the one huggingface_hub finds: HF_TOKEN, or what `hf auth login` stored. It is never printed.

    Args:
        plan: what `plan_upload` gave.
        api: the hub; None for the real one.

    Returns:
        The address of the repository.

    Raises:
        OutputError: the hub refused it, or cannot be reached.
    """
    from huggingface_hub import HfApi, get_token

    hub = HfApi() if api is None else api
    try:
        where = hub.create_repo(plan.repo, repo_type="model", private=plan.private, exist_ok=True)
        hub.upload_folder(
            repo_id=plan.repo,
            repo_type="model",
            folder_path=plan.folder,
            allow_patterns=[glob.escape(file.name) for file in plan.files],
            commit_message="Repaired with deltamend",
        )
    except Exception as error:  # whatever the network library of this version of huggingface_hub raises
        lines = str(error).splitlines() or [type(error).__name__]
        text = lines[0].replace(get_token() or "\0", "…")
        raise OutputError(
            f"{plan.repo}: could not be uploaded ({text}); check the name, HF_TOKEN and the network"
        ) from error
    return str(where)


def _local_base(folder: Path) -> str | None:
    config = folder / ADAPTER_CONFIG_FILE
    if not config.exists():
        return None
    base = read_json(config).get("base_model_name_or_path")
    return base if isinstance(base, str) and (Path(base).is_absolute() or Path(base).exists()) else None
