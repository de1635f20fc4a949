"""The repair we recommend where nothing is known of the task: what `--method auto` does, and why."""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deltamend.checkpoint.hashing import hash_folder
from deltamend.checkpoint.safetensors_header import read_header
from deltamend.errors import CheckpointError, OutputError, UsageError, option
from deltamend.inputs.open_models import model_and_adapter, model_folder
from deltamend.machine.cache import default_cache_dir
from deltamend.machine.digests import fingerprint
from deltamend.methods.null_space import VERSION
from deltamend.methods.registry import all_methods
from deltamend.progress import Progress
from deltamend.repairing.options import AUTO, Recommendation, RepairOptions

_SAMPLES, _TOKENS, _SEED = 48, 96, 0
_FALLBACK = ("wise-ft", {"alpha": 0.5}, 0.5)


def recommend(
    base: str | os.PathLike[str], *, cache: Path | None = None, progress: Progress | None = None
) -> Recommendation:
    """The method that was best in the choosing cells of our study, or WiSE-FT where it cannot run.

    That is `null-space` (docs/results). Over the cells that chose nothing it has the highest mean, not beyond doubt in cells like
    them, and none of its lead is in bf16 (benchmarks/results/study/lead_fresh.txt). It needs the base to write a few texts: it is loaded
    with transformers, in float32, and what its layers are given is kept in the cache for the next fine-tuned model of the same
    base; a damaged file is made again. Where this is not possible it is WiSE-FT at 0.5, norms and biases too.

    The file's last bits, and so a sampled word, may depend on how many threads torch has. Once it is there it does not change.

    Args:
        base: the model fine-tuning started from: a folder, a hub id or a GGUF file.
        cache: where the file of activations is kept; None for `default_cache_dir`.
        progress: called as the base is read.

    Returns:
        The method with its parameters, what norms and biases become, and the reason in one sentence.

    Raises:
        CheckpointError: there is no such model.
        OutputError: the cache cannot be written.

    Source: ours.
    """
    if model_and_adapter(str(base)) is not None:
        return _instead("the base is a model with an adapter, and only a model is run")
    folder = model_folder(str(base))
    if missing := [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]:
        return _instead(f"the base cannot be run without {' and '.join(missing)}: pip install 'deltamend[hf]'")
    weights = hash_folder(folder)
    asked = {
        "version": VERSION,
        "files": weights.other_files,
        "samples": _SAMPLES,
        "tokens": _TOKENS,
        "seed": _SEED,
        "weights": weights.weights,
    }
    file = (cache or default_cache_dir()) / f"activations-{fingerprint(asked)}.safetensors"
    known = file.exists()
    if known and not _is_whole(file):  # `null-space` would stop at it, now and in every later run
        known = False
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"{file}: is damaged and cannot be removed ({error.strerror}); remove it") from error
    if not known:
        from deltamend.calibration.activations import write_activations  # torch

        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{file.parent}: cannot be made ({error.strerror}); set DELTAMEND_CACHE") from error
        try:
            with _first(file) as own:
                write_activations(folder, own, samples=_SAMPLES, tokens=_TOKENS, seed=_SEED, progress=progress)
        except OutputError:
            raise
        except (
            Exception
        ) as error:  # a model that transformers does not know or that does not fit, a template that raises
            return _instead(f"the base cannot be read ({' '.join(str(error).split())[:200] or type(error).__name__})")
    read = "read before" if known else f"read in {_SAMPLES} texts that it wrote itself"
    return Recommendation(
        "null-space",
        {"activations": str(file)},
        "finetuned",
        f"null-space keeps what the update does to inputs that are not the base's own; the base was {read}",
    )


def refuse_with_auto(options: RepairOptions) -> None:
    """Refuse what cannot be asked for together with `auto`, before the base is read for minutes.

    Raises:
        UsageError: parameters, rules or an adapter are asked for.
    """
    auto = option("method", AUTO)
    if options.parameters or options.rules:
        raise UsageError(
            f"{auto}: the method and its parameters are chosen for you; leave out {option('parameters')} and "
            f"{option('rules')}, or name a method"
        )
    if options.output == "adapter":
        able = ", ".join(name for name, kind in all_methods().items() if kind.low_rank)
        raise UsageError(
            f"{option('output', 'adapter')}: {auto} uses null-space, or wise-ft where the base cannot be run, and the update that "
            f"these keep is not low-rank; use one of {able}, or {option('output', 'checkpoint')}"
        )


def _is_whole(file: Path) -> bool:
    try:
        return read_header(file).metadata.get("activations") == VERSION
    except CheckpointError:
        return False


@contextmanager
def _first(file: Path) -> Iterator[Path]:
    """A file to write beside `file`, which becomes `file` unless another run was first: that one may be read already."""
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{file.stem}-", dir=file.parent))
    except OSError as error:
        raise OutputError(f"{file.parent}: cannot be written to ({error.strerror}); set DELTAMEND_CACHE") from error
    own = folder / file.name
    try:
        yield own
        try:
            os.link(own, file)
        except FileExistsError:
            pass
        except OSError:  # a file system without links
            own.replace(file)
    finally:
        shutil.rmtree(folder)


def _instead(why: str) -> Recommendation:
    method, parameters, vectors = _FALLBACK
    reason = f"wise-ft at 0.5 in place of null-space, as {why}"
    return Recommendation(method, dict(parameters), vectors, reason, fallback=True)
