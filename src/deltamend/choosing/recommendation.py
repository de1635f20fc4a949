"""Recommend a method when nothing is known about the task: what `method="auto"` does, and why."""

from __future__ import annotations

import importlib.util
import os
import textwrap
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from deltamend.checkpoint.hashing import hash_file, hash_folder
from deltamend.checkpoint.safetensors_header import read_header
from deltamend.errors import OutputError, UsageError, option
from deltamend.inputs.open_models import model_and_adapter, model_folder, paths_of
from deltamend.machine.atomic import folder_beside
from deltamend.machine.cache import default_cache_dir
from deltamend.machine.digests import fingerprint
from deltamend.methods.input_moments import VERSION, is_whole
from deltamend.progress import Progress
from deltamend.repairing.options import AUTO, Recommendation, RepairOptions
from deltamend.repairing.run import repair_folders


class _Texts(NamedTuple):
    """Texts that a model writes itself; see `write_activations`."""

    samples: int
    tokens: int
    seed: int = 0

    @property
    def described(self) -> str:
        return f"{self.samples} of its own"

    def decides(self) -> dict[str, object]:
        """What decides the activations besides the model."""
        return self._asdict()

    def arguments(self) -> dict[str, Any]:
        """For `write_activations`."""
        return self._asdict()


class _Examples(NamedTuple):
    """Examples of a user's: what the fine-tuned model is to keep."""

    file: Path
    number: int

    @property
    def described(self) -> str:
        return f"{self.number} of your examples"

    def decides(self) -> dict[str, object]:
        """What decides the activations besides the model."""
        return {"examples": hash_file(self.file, self.file.name).sha256, "tokens": _LONGEST_EXAMPLE}

    def arguments(self) -> dict[str, Any]:
        """For `write_activations`."""
        return {"texts": self.file, "chat": None, "tokens": _LONGEST_EXAMPLE}


_BASE_TEXTS = _Texts(48, 96)
_FINETUNED_TEXTS = _Texts(8, 32)
"""Few, as the fine-tuned model is another one in every repair; over the choosing cells, 48 of 96 tokens were no better."""
_MIXED = {"strength": 1.0, "update": 0.4, "identity": 0.2, "target": 0.4}
_UPDATE = {"strength": 0.3, "update": 0.7, "identity": 0.3}
_EXAMPLES = {"strength": 1.0, "update": 0.0, "identity": 0.1, "target": 0.9}
"""With examples of the task, neither the update nor texts of the fine-tuned model are needed to tell what the task is."""
_LONGEST_EXAMPLE = 512
"""In tokens; the rest is cut."""
_LONGEST_REASON = 240
"""Characters of another library's error that are shown; its messages can fill a screen."""
_BASE_SHARE = 0.7
"""Of the time of a recommendation, for the bar."""
_FALLBACK = ("wise-ft", {"alpha": 0.5}, 0.5)


class _CannotRunError(Exception):
    """A model cannot be run here; the text says why."""


def recommend(
    base: str | os.PathLike[str],
    finetuned: str | os.PathLike[str] | None = None,
    *,
    keep: str | os.PathLike[str] | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Recommendation:
    """Recommend a method and its strength for a pair of which nothing is known but its weights.

    The method is `two-sided`. It needs to know what the layers of both models are given when the models write text. So each is
    loaded with transformers, in float32, one after the other, and writes a few texts; the activations are kept in the cache,
    those of the base for all models that were fine-tuned from it. A damaged file in the cache is made again. If the fine-tuned
    model cannot be run, `two-sided` goes by the update and the base alone. If the base cannot be run, WiSE-FT at 0.5 is
    recommended instead, with norms and biases at 0.5 as well.

    Where there are examples of the task, the fine-tuned model reads these, and writes no texts.

    The last bits of the activations, and with them a sampled word, may depend on the number of torch's threads. A file that is
    in the cache does not change any more.

    Args:
        base: the model that fine-tuning started from: a folder, a hub id or a GGUF file.
        finetuned: its descendant: one of these, or any of them with an adapter, `MODEL+ADAPTER`. None to recommend a method for
            all descendants.
        keep: JSONL file of examples of what the fine-tuned model is to keep, with a prompt and a response on each line (see
            `CalibrationText`); prompts go through the chat template of the model where it has one.
        cache: the folder for the files of activations; None for `default_cache_dir`.
        progress: callback while the models are run.

    Returns:
        The method with its parameters, the option `vectors` for norms and biases, and the reason in one sentence.

    Raises:
        CheckpointError: a model does not exist.
        UsageError: `keep` cannot be read, or is given without a fine-tuned model.
        OutputError: the cache cannot be written.

    Source: ours; docs/study.md says how the settings were chosen.
    """
    kept = cache or default_cache_dir()
    if keep is not None and finetuned is None:
        raise UsageError(f"{option('keep')}: FINETUNED reads these examples; give it, too, or leave this option out")
    texts = _FINETUNED_TEXTS if keep is None else _examples(Path(keep))
    if model_and_adapter(str(base)) is not None:
        return _instead("the base is a model with an adapter, and only a model is run")
    try:
        own, known = _activations(_readable(base, base, kept), _BASE_TEXTS, kept, _part(progress, 0.0, _BASE_SHARE))
    except _CannotRunError as error:
        return _instead(f"the base cannot be run ({error}); two-sided needs a base that transformers loads and runs")
    read = "read before" if known else f"read in {_BASE_TEXTS.samples} texts that it wrote itself"
    said = "two-sided keeps what the update does for its own task and undoes what it does to the base's own inputs; "
    found: dict[str, object] = {"activations": str(own)}
    if finetuned is None:
        return Recommendation("two-sided", found | _UPDATE, "finetuned", f"{said}the base was {read}")
    try:
        rest = _part(progress, _BASE_SHARE, 1.0)
        target, known = _target_activations(base, finetuned, texts, own, kept, rest)
    except _CannotRunError as error:
        reason = f"{said}the base was {read}, and the fine-tuned model cannot be run ({error}), so that less is kept of its task"
        return Recommendation("two-sided", found | _UPDATE, "finetuned", reason, fallback=True)
    weights = _MIXED if isinstance(texts, _Texts) else _EXAMPLES
    wrote = "read before" if known else f"in {texts.described}"
    return Recommendation(
        "two-sided",
        found | weights | {"target_activations": str(target)},
        "finetuned",
        f"{said}the base was {read}, the fine-tuned model {wrote}",
    )


def _examples(file: Path) -> _Examples:
    """The examples of a user.

    Raises:
        UsageError: they cannot be read.
    """
    if importlib.util.find_spec("torch") is None:
        raise UsageError(
            f"{option('keep')}: examples are read with torch and transformers: pip install 'deltamend[hf]'"
        )
    from deltamend.calibration.texts import read_texts  # torch

    return _Examples(file, len(read_texts(file)))


def _target_activations(
    base: str | os.PathLike[str],
    finetuned: str | os.PathLike[str],
    texts: _Texts | _Examples,
    own: Path,
    kept: Path,
    progress: Progress | None,
) -> tuple[Path, bool]:
    """The file of the fine-tuned model's activations, and whether it was there.

    Raises:
        _CannotRunError: the model cannot be run, or calls its tensors otherwise than the base.
        CheckpointError: it does not exist.
        UsageError: an example is too short.
        OutputError: the cache cannot be written.
    """
    file, known = _activations(_readable(base, finetuned, kept), texts, kept, progress)
    names = ({entry.name for entry in read_header(one).entries} for one in (own, file))
    if set.isdisjoint(*names):
        raise _CannotRunError("its tensors have other names than those of the base")
    return file, known


def _part(progress: Progress | None, start: float, stop: float) -> Progress | None:
    """Progress that goes from `start` to `stop` of the whole."""
    return None if progress is None else lambda name, share: progress(name, start + (stop - start) * share)


class _Readable(NamedTuple):
    """A model that is to be run.

    Attributes:
        parts: its folders, the model's and perhaps an adapter's.
        opened: gives one folder that transformers can load, for as long as it is read.
    """

    parts: tuple[Path, ...]
    opened: Callable[[], AbstractContextManager[Path]]


def _readable(base: str | os.PathLike[str], model: str | os.PathLike[str], kept: Path) -> _Readable:
    """A model as one folder; `MODEL+ADAPTER` is merged beside the files of the cache, as it is nowhere a checkpoint."""
    split = model_and_adapter(str(model))
    if split is None:
        folder = model_folder(str(model))
        return _Readable((folder,), lambda: nullcontext(folder))

    @contextmanager
    def merged() -> Iterator[Path]:
        with _folder_in_cache(kept / "merged") as folder:
            yield repair_folders(base, model, folder / "merged", RepairOptions(method="none")).out

    return _Readable((model_folder(split[0]), paths_of(model)[-1]), merged)


def _activations(
    model: _Readable, texts: _Texts | _Examples, kept: Path, progress: Progress | None
) -> tuple[Path, bool]:
    """The file of a model's activations over texts of its own or over examples, and whether it was there.

    Raises:
        _CannotRunError: the model cannot be run.
        UsageError: an example is too short.
        OutputError: the cache cannot be written.
    """
    if missing := [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]:
        raise _CannotRunError(f"without {' and '.join(missing)}: pip install 'deltamend[hf]'")
    hashes = [hash_folder(part) for part in model.parts]
    parts = [{"files": one.other_files, "weights": one.weights} for one in hashes]
    settings = {"version": VERSION, "parts": parts, **texts.decides()}
    file = kept / f"activations-{fingerprint(settings)}.safetensors"
    known = file.exists()
    if known and not is_whole(file):  # the method would refuse it, in this run and in every later one
        known = False
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(
                f"{file}: is damaged and cannot be deleted ({error.strerror}); delete it yourself"
            ) from error
    if known:
        return file, True
    from deltamend.calibration.activations import write_activations  # torch

    try:
        with _first_to_write(file) as own, model.opened() as folder:
            write_activations(folder, own, **texts.arguments(), progress=progress)
    except OutputError:
        raise
    except UsageError as error:
        if isinstance(texts, _Examples):  # the fault of an example, not of the model
            raise UsageError(f"{texts.file}: {error}") from error
        raise _CannotRunError(str(error)) from error
    # Anything may be raised by a model that transformers does not know or that does not fit into memory, or by its chat
    # template.
    except Exception as error:
        reason = textwrap.shorten(str(error), _LONGEST_REASON, placeholder=" …") or type(error).__name__
        raise _CannotRunError(reason) from error
    return file, False


def refuse_with_auto(options: RepairOptions) -> None:
    """Refuse options that cannot be combined with `method="auto"`, before the base is run for minutes.

    Raises:
        UsageError: parameters or rules are given, or the examples of `keep` cannot be read.
    """
    auto = option("method", AUTO)
    if options.parameters or options.rules:
        raise UsageError(
            f"{auto}: the method and its parameters are chosen automatically; leave out {option('parameters')} and "
            f"{option('rules')}, or name a method"
        )
    if options.keep is not None:
        _examples(options.keep)


@contextmanager
def _first_to_write(file: Path) -> Iterator[Path]:
    """Yield a temporary file to write, which becomes `file` unless another run has made `file` meanwhile.

    The file of the other run stays, because it may be in use already.
    """
    with _folder_in_cache(file) as folder:
        own = folder / file.name
        yield own
        try:
            os.link(own, file)
        except FileExistsError:
            pass
        except OSError:  # the file system has no hard links
            own.replace(file)


@contextmanager
def _folder_in_cache(beside: Path) -> Iterator[Path]:
    """A temporary folder beside a file of the cache.

    Raises:
        OutputError: the cache cannot be written.
    """
    advice = "set DELTAMEND_CACHE to another folder"
    try:
        beside.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{beside.parent}: cannot be created ({error.strerror}); {advice}") from error
    with ExitStack() as held:
        try:
            folder = held.enter_context(folder_beside(beside))
        except OSError as error:
            raise OutputError(f"{beside.parent}: cannot be written to ({error.strerror}); {advice}") from error
        yield folder


def _instead(why: str) -> Recommendation:
    method, parameters, vectors = _FALLBACK
    reason = f"wise-ft at 0.5 in place of two-sided, as {why}"
    return Recommendation(method, dict(parameters), vectors, reason, fallback=True)
