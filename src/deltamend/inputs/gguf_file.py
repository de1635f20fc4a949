"""A GGUF file as a checkpoint folder, unpacked by transformers."""

from __future__ import annotations

import io
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from deltamend.checkpoint.hashing import hash_file
from deltamend.errors import CheckpointError
from deltamend.language_models.loading import quiet_transformers, transformers_module
from deltamend.machine.atomic import disk_is_full
from deltamend.machine.cache import default_cache_dir
from deltamend.machine.cached_folders import checked_folder
from deltamend.machine.digests import json_sha256


def unpacked(gguf: Path) -> Path:
    """The folder in deltamend's cache to which a GGUF file is unpacked, in fp32 so that nothing is rounded twice.

    The folder is that of the file's whole content, and is unpacked again if it was damaged. The whole model is held in memory
    once, while it is unpacked.

    Raises:
        CheckpointError: transformers cannot read the file.
        OutputError: the cache cannot be written.
    """
    source = {"sha256": hash_file(gguf, gguf.name).sha256, "dtype": "float32"}

    def unpack(part: Path) -> None:
        try:
            with quiet_transformers():
                unpack_gguf(gguf, part, dtype="float32")
        except Exception as error:  # transformers and tokenizers raise of all kinds on a file they do not know
            if disk_is_full(error):  # which says nothing of the file; `publish` says where
                raise
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(
                f"{gguf}: transformers cannot read it ({reason}); give a safetensors folder"
            ) from error

    return checked_folder(default_cache_dir() / f"gguf-{gguf.stem}-{json_sha256(source)[:32]}", unpack)


def unpack_gguf(gguf: Path, out: Path, *, dtype: str) -> None:
    """Write the GGUF file's model, tokenizer and chat template into the folder `out`.

    Args:
        gguf: the file.
        out: an empty folder.
        dtype: of the weights, by torch's name.
    """
    import torch

    transformers = transformers_module()
    where: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True, "trust_remote_code": False}
    # Newer transformers may leave the weights packed in their 4-bit blocks; older ones always unpack them.
    unpacking = {"quantization_config": transformers.GgufConfig(dequantize=True)} if has_packed_gguf() else {}
    # transformers draws its own bar here, and has no switch for this one; an error still arrives as an exception.
    with redirect_stderr(io.StringIO()):
        packed = transformers.AutoModelForCausalLM.from_pretrained(
            gguf.parent, dtype=torch.float32, **where, **unpacking
        )
        # A model that has come out of a GGUF file still says it is quantised, and save_pretrained refuses it.
        settings = packed.config.to_dict()
        settings.pop("quantization_config", None)
        settings.update(dtype=dtype, _name_or_path=gguf.stem)
        config = type(packed.config).from_dict(settings)
        chosen = getattr(torch, dtype)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=chosen)
        model.load_state_dict({name: tensor.to(chosen) for name, tensor in packed.state_dict().items()})
        model.generation_config = transformers.GenerationConfig.from_model_config(config)
        model.save_pretrained(out)
        transformers.AutoTokenizer.from_pretrained(gguf.parent, **where).save_pretrained(out)


def has_packed_gguf() -> bool:
    """Whether this transformers can keep GGUF weights packed, and so has to be told not to."""
    return hasattr(transformers_module(), "GgufConfig")
