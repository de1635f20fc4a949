"""Fetch a model from a hub by its id."""

from __future__ import annotations

import re
from pathlib import Path

from deltamend.errors import CheckpointError

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?")

# Code is fetched with the rest and copied to the output, never run. Weights in a second format and the state of a training
# run are left where they are; see `checkpoint.stray_weights`. "*/*.bin" are modules of their own, in subfolders.
_SMALL = ["*.json", "*.jinja", "*.txt", "*.model", "*.py", "*.md", "tokenizer*", "merges*", "vocab*"]
_PARTS = ["*.pt", "*.pth", "*.npy", "*.npz", "*/*.bin"]
_SAFETENSORS = ["*.safetensors"]
_TORCH = ["*.bin"]
_NOT_NEEDED = [
    "consolidated*", "original/*", "onnx/*", "openvino/*", "coreml/*", "gguf/*", "optimizer*", "scheduler*", "scaler*",
    "rng_state*", "checkpoint-*/*", "global_step*/*", "runs/*",
]  # fmt: skip


def is_hub_id(text: str) -> bool:
    """Whether a text has the form `org/name` or `org/name@revision`."""
    return _ID.fullmatch(text) is not None and ".." not in text


def id_and_subfolder(text: str) -> tuple[str, str] | None:
    """The two parts of `org/name/subfolder` or `org/name/subfolder@revision`: the id, and the folder in it; None for others."""
    name, at, revision = text.partition("@")
    parts = name.split("/")
    found = "/".join(parts[:2]) + at + revision
    inner = parts[2:]
    return (found, "/".join(inner)) if inner and is_hub_id(found) and not {"", ".", ".."} & {*inner} else None


def fetch(model: str) -> Path:
    """The local folder of a model on the hub, downloaded where it is not in the cache yet.

    Interrupted downloads go on where they stopped, HF_HUB_OFFLINE and the cache's place are huggingface_hub's own, and so
    is the token, which comes from the environment or its login.

    Args:
        model: `org/name`, or with a branch, tag or commit `org/name@revision`.

    Raises:
        CheckpointError: there is no such model, no access, no network, or it holds no weights that can be read.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    name, _, revision = model.partition("@")

    def download(patterns: list[str]) -> Path:
        return Path(
            snapshot_download(name, revision=revision or None, allow_patterns=patterns, ignore_patterns=_NOT_NEEDED)
        )

    try:
        folder = download([*_SMALL, *_PARTS, *_SAFETENSORS])
        if not any(folder.glob("*.safetensors")):
            folder = download([*_SMALL, *_PARTS, *_TORCH])
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "no answer"
        raise CheckpointError(
            f"{model}: the hub refuses it ({status}); check the name, the revision, and HF_TOKEN for a gated model"
        ) from error
    except HFValidationError as error:
        raise CheckpointError(
            f"{model}: is neither a folder on this machine nor a model id of the hub; check its spelling"
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise CheckpointError(
            f"{model}: is neither a folder on this machine nor in the cache, and the hub cannot be reached; download it first"
        ) from error
    return folder
