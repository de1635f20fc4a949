"""Load a language model and its tokenizer with transformers, which is imported late, kept quiet and kept off the network."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from deltamend.errors import CheckpointError, DeltamendError
from deltamend.language_models.model_limits import bounded_memory, check_model_files
from deltamend.machine.templates import limited_templates

TODAY = date(2024, 7, 26)
"""The date that chat templates are told, so that the same inputs give the same tokens on every day."""
_CLOCK = (
    "{% macro strftime_now(format) %}{{ format"
    + "".join(
        f" | replace('%{code}', '{TODAY.strftime('%' + code)}')"
        for code in [*"aAbBcCdDeFgGhHIjklmMprRSTuUVwWxXyYzZ", "f", "-d", "-m", "-H", "-I", "-M", "-S", "-j", "%"]
    )
    + " }}{% endmacro %}\n"
)
"""A Jinja macro that replaces transformers' function of this name, which would read the clock; Jinja drops the newline."""


_OWN_IMPLEMENTATIONS = (None, "eager", "sdpa", "grouped_mm", "batched_mm")
_KERNELS_FROM_HUB = "USE_HUB_KERNELS"
"""The variable by which transformers is told whether to fetch compiled kernels from the hub and run them."""


class LoadedModel(NamedTuple):
    """A model in memory and its tokenizer; transformers gives neither a useful static type."""

    model: Any
    tokenizer: Any


def transformers_module() -> Any:
    """The transformers module, imported on first use because it costs seconds and is an optional extra.

    Raises:
        DeltamendError: transformers is not installed.
    """
    os.environ.setdefault(_KERNELS_FROM_HUB, "NO")  # it is read as transformers is imported
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise DeltamendError(f"models are loaded with transformers ({error}): pip install 'deltamend[hf]'") from error


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' own log lines and progress bars, which would tear ours; restore them afterwards."""
    logging = transformers_module().logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def load(folder: Path, *, dtype: str = "float32") -> LoadedModel:
    """The language model in `folder`, in `dtype` and in evaluation mode, with its tokenizer. Not thread-safe.

    A model of text and images is loaded whole where transformers does not load its language part alone.

    Raises:
        CheckpointError: there is no such folder, transformers cannot load it, or its weights are not those of its config.
        DeltamendError: transformers is not installed.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; give the folder of a checkpoint")
    check_model_files(folder)
    transformers = transformers_module()
    # Without a plain no, transformers asks on the terminal whether to run the checkpoint's own Python.
    where: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        with bounded_memory(folder):
            config = without_kernels(transformers.AutoConfig.from_pretrained(folder, **where))
            model, found = auto_class(config).from_pretrained(
                folder, config=config, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, **where
            )
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **where)
    except Exception as error:  # transformers, safetensors and tokenizers raise of all kinds on a damaged file
        kind = "" if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: "
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"{folder}: transformers cannot load it ({kind}{reason}); check its files and the free memory"
        ) from error
    # transformers would make up what it misses, anew each time, and says no name where a shape is another.
    strange = [f"no {name!r}" for name in sorted(found["missing_keys"])]
    strange += [f"{name!r} in another shape" for name, *_ in sorted(found["mismatched_keys"])]
    if strange:
        raise CheckpointError(
            f"{folder}: its weights hold {strange[0]}, unlike its config.json says; check both, or download it again"
        )
    return LoadedModel(model.eval(), tokenizer)


@contextmanager
def run_errors(folder: Path) -> Iterator[None]:
    """Within the block, whatever the model in `folder` raises as it runs is an error of one line that names the folder.

    Raises:
        CheckpointError: it raised something, as transformers and tokenizers do of all kinds on a damaged config or tokenizer.
    """
    try:
        yield
    except DeltamendError:
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise CheckpointError(
            f"{folder}: the model cannot be run ({reason}); check its config and tokenizer"
        ) from error


def without_kernels(config: Any) -> Any:
    """The config, asking for no code from elsewhere: transformers would fetch the kernels that it names, and run them.

    What a config may choose are the implementations of attention and of experts that are transformers' and torch's own.

    Args:
        config: a `PreTrainedConfig`, which is changed, with the configs inside it.
    """
    for key in ("_attn_implementation", "_experts_implementation"):
        if getattr(config, key, None) not in _OWN_IMPLEMENTATIONS:
            setattr(config, key, None)
    for inner in list(vars(config).values()):
        if isinstance(inner, transformers_module().PretrainedConfig):
            without_kernels(inner)
    return config


def auto_class(config: Any) -> Any:
    """The class of transformers' Auto classes that loads a language model of this config, by itself or with images.

    Args:
        config: a `PreTrainedConfig`.
    """
    transformers = transformers_module()
    names = ("AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoModelForMultimodalLM")
    classes = [getattr(transformers, name) for name in names if hasattr(transformers, name)]
    fitting = [found for found in classes if type(config) in found._model_mapping]
    return classes[0] if config.is_encoder_decoder or not fitting else fitting[0]


def clockless_template(tokenizer: Any) -> str | None:
    """The chat template with its clock stopped at `TODAY`; None, which means the template as it is, where it reads no clock.

    Raises:
        ValueError: there is no chat template.
    """
    template = tokenizer.get_chat_template()
    return _CLOCK + template if "strftime_now" in template else None


def chat_prompt(tokenizer: Any, question: str) -> list[int]:
    """Token ids of one user message up to where the assistant's answer begins, by the model's own chat template.

    The system message is empty: SmolLM2's template would otherwise add a default one, which doubles the length of a
    short prompt, and with it the time of everything the demo does.
    """
    messages = [{"role": "system", "content": ""}, {"role": "user", "content": question}]
    with limited_templates():
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, chat_template=clockless_template(tokenizer)
        )
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def plain_tokens(tokenizer: Any, text: str) -> list[int]:
    """Token ids of `text` with nothing added."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
