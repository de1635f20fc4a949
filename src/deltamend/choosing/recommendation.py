"""Recommend a method when nothing is known about the task: what `method="auto"` does, and why."""

from __future__ import annotations

import importlib.util
import os
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from deltamend.checkpoint.hashing import hash_folder
from deltamend.errors import OutputError, UsageError, option
from deltamend.inputs.open_models import model_and_adapter, model_folder
from deltamend.machine.atomic import folder_beside
from deltamend.machine.cache import default_cache_dir
from deltamend.machine.digests import fingerprint
from deltamend.methods.input_moments import VERSION, is_whole
from deltamend.progress import Progress
from deltamend.repairing.options import AUTO, Recommendation, RepairOptions

_SAMPLES, _TOKENS, _SEED = 48, 96, 0
_LONGEST_REASON = 240
"""Characters of another library's error that are shown; its messages can fill a screen."""
_FALLBACK = ("wise-ft", {"alpha": 0.5}, 0.5)


def recommend(
    base: str | os.PathLike[str], *, cache: Path | None = None, progress: Progress | None = None
) -> Recommendation:
    """Recommend a method: the one that was best in the cells of our study on which settings were chosen.

    That method is `null-space` (docs/results). Over the cells that were not used for choosing it has the highest mean score,
    though it may not have it over other cells like them, and it has no lead in bf16 (benchmarks/results/study/lead_fresh.txt).
    The method needs to know what the base's layers are given when the base writes text. So the base is loaded with transformers,
    in float32, and writes a few texts; the activations are kept in the cache, for other fine-tuned models of the same base. A
    damaged file in the cache is made again. If the base cannot be run, WiSE-FT at 0.5 is recommended instead, with norms and
    biases at 0.5 as well.

    The last bits of the activations, and with them a sampled word, may depend on the number of torch's threads. A file that is
    in the cache does not change any more.

    Args:
        base: the model that fine-tuning started from: a folder, a hub id or a GGUF file.
        cache: the folder for the file of activations; None for `default_cache_dir`.
        progress: callback while the base is run.

    Returns:
        The method with its parameters, the option `vectors` for norms and biases, and the reason in one sentence.

    Raises:
        CheckpointError: the model does not exist.
        OutputError: the cache cannot be written.

    Source: ours.
    """
    if model_and_adapter(str(base)) is not None:
        return _instead("the base is a model with an adapter, and only a model is run")
    folder = model_folder(str(base))
    if missing := [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]:
        return _instead(f"the base cannot be run without {' and '.join(missing)}: pip install 'deltamend[hf]'")
    weights = hash_folder(folder)
    settings = {
        "version": VERSION,
        "files": weights.other_files,
        "samples": _SAMPLES,
        "tokens": _TOKENS,
        "seed": _SEED,
        "weights": weights.weights,
    }
    file = (cache or default_cache_dir()) / f"activations-{fingerprint(settings)}.safetensors"
    known = file.exists()
    if known and not is_whole(file):  # `null-space` would refuse it, in this run and in every later one
        known = False
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(
                f"{file}: is damaged and cannot be deleted ({error.strerror}); delete it yourself"
            ) from error
    if not known:
        from deltamend.calibration.activations import write_activations  # torch

        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"{file.parent}: cannot be created ({error.strerror}); set DELTAMEND_CACHE to another folder"
            ) from error
        try:
            with _first_to_write(file) as own:
                write_activations(folder, own, samples=_SAMPLES, tokens=_TOKENS, seed=_SEED, progress=progress)
        except OutputError:
            raise
        # Anything may be raised by a model that transformers does not know or that does not fit into memory, or by its chat
        # template.
        except Exception as error:
            reason = textwrap.shorten(str(error), _LONGEST_REASON, placeholder=" …") or type(error).__name__
            return _instead(
                f"the base cannot be run ({reason}); null-space needs a base that transformers loads and runs"
            )
    read = "read before" if known else f"read in {_SAMPLES} texts that it wrote itself"
    return Recommendation(
        "null-space",
        {"activations": str(file)},
        "finetuned",
        f"null-space keeps what the update does to inputs that are not the base's own; the base was {read}",
    )


def refuse_with_auto(options: RepairOptions) -> None:
    """Refuse options that cannot be combined with `method="auto"`, before the base is run for minutes.

    Raises:
        UsageError: parameters or rules are given.
    """
    auto = option("method", AUTO)
    if options.parameters or options.rules:
        raise UsageError(
            f"{auto}: the method and its parameters are chosen automatically; leave out {option('parameters')} and "
            f"{option('rules')}, or name a method"
        )


@contextmanager
def _first_to_write(file: Path) -> Iterator[Path]:
    """Yield a temporary file to write, which becomes `file` unless another run has made `file` meanwhile.

    The file of the other run stays, because it may be in use already.
    """
    with ExitStack() as held:
        try:
            folder = held.enter_context(folder_beside(file))
        except OSError as error:
            raise OutputError(
                f"{file.parent}: cannot be written to ({error.strerror}); set DELTAMEND_CACHE to another folder"
            ) from error
        own = folder / file.name
        yield own
        try:
            os.link(own, file)
        except FileExistsError:
            pass
        except OSError:  # the file system has no hard links
            own.replace(file)


def _instead(why: str) -> Recommendation:
    method, parameters, vectors = _FALLBACK
    reason = f"wise-ft at 0.5 in place of null-space, as {why}"
    return Recommendation(method, dict(parameters), vectors, reason, fallback=True)
