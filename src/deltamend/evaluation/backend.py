"""The model behind lm-eval's interface: any of its backends by name, with batches that suit a CPU, and progress reports."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltamend.errors import DeltamendError, EvaluationError, UsageError, option
from deltamend.evaluation.model_source import runs_here
from deltamend.language_models.loading import auto_class, without_kernels
from deltamend.language_models.model_limits import bounded_memory, check_model_files
from deltamend.machine.processor import computes_in_bf16

_BATCH_TOKENS = 1024
"""Tokens, padding included, of one batch on the CPU.

Measured with SmolLM2-135M: a CPU's tokens a second do not grow with the batch from 256 tokens on, and fall slowly above
2,000, while the logits of a batch (tokens × vocabulary × 8 bytes) take 0.4 GB at 1,024 tokens of a vocabulary of 49,152.
"""
_GENERATED_AT_ONCE = 16
"""Answers generated side by side on the CPU: each step reads all the weights, for one answer as for many."""
_SLICES = 20
"""How often progress is reported within a task, where we form the batches."""


@dataclass(frozen=True)
class BackendOptions:
    """How a model is run.

    Attributes:
        name: lm-eval's name of the backend, such as hf or vllm.
        arguments: more arguments for its constructor.
        batch_size: number of sequences in a batch; None to choose it automatically.
        device: where it runs, such as cpu or cuda:0; None for the backend's own choice.
        dtype: auto (as stored; float32 on a CPU that does not multiply bf16 matrices), bfloat16, float16 or float32.
        trust_remote_code: run Python that comes with the checkpoint.
    """

    name: str = "hf"
    arguments: Mapping[str, Any] | None = None
    batch_size: int | None = None
    device: str | None = None
    dtype: str = "auto"
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in _DTYPES:
            raise UsageError(f"{option('dtype')}: no dtype {self.dtype!r}; there are {', '.join(_DTYPES)}")

    @property
    def computed_dtype(self) -> str:
        """The dtype that the backend is asked for: bf16 weights are computed in float32 where the CPU has no bf16.

        float32 holds every bf16 and fp16 weight exactly, so the model is the same; only sums are rounded less.
        """
        on_cpu = self.name == "hf" and (self.device or best_device()) == "cpu"
        return "float32" if self.dtype == "auto" and on_cpu and not computes_in_bf16() else self.dtype


_DTYPES = ("auto", "bfloat16", "float16", "float32")


def check_device(device: str | None) -> None:
    """Refuse a device that this machine lacks; some backends would run on another one without saying so.

    Raises:
        UsageError: torch cannot use it.
    """
    import torch

    try:
        torch.empty(0, device=device or best_device())
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"{option('device')}: {device!r} cannot be used here ({_line(error)}); leave it out to have one chosen"
        ) from error


def open_backend(model: str, options: BackendOptions, report_share: Callable[[float], None]) -> Any:
    """An lm-eval LM on `model`, a folder or the name that a remote backend knows.

    `seen` is called with the share of a call's requests that are done.

    Raises:
        UsageError: there is no such backend.
        EvaluationError: it cannot be loaded, or takes no such argument.
    """
    from lm_eval.api.registry import get_model

    try:
        backend = get_model(options.name)
    except (KeyError, ValueError, ImportError) as error:
        raise UsageError(
            f"{option('backend')}: lm-eval cannot open {options.name!r} ({_line(error)}); its documentation lists the names"
        ) from error
    known = _parameters(backend)
    arguments = {key: value for key, value in _arguments(model, options).items() if key in known}
    arguments |= dict(options.arguments or {})
    folder = Path(model)
    here = folder.is_dir() and runs_here(options.name)
    try:
        if here:
            check_model_files(folder)
        with bounded_memory(folder) if here else nullcontext():
            return _watched(backend, options.batch_size, report_share)(**arguments)
    except DeltamendError:
        raise
    except Exception as error:  # transformers, tokenizers and the backend raise of all kinds on a damaged file
        raise EvaluationError(f"{model}: {options.name} cannot load it ({_line(error)})") from error


def _arguments(model: str, options: BackendOptions) -> dict[str, Any]:
    return {
        "pretrained": model,
        "model": model,
        "dtype": options.computed_dtype,
        "device": options.device or best_device(),
        "batch_size": options.batch_size or "auto",
        "trust_remote_code": options.trust_remote_code,
        # In bf16 the log-probability of an answer of 20 tokens has steps of 0.25: choices tie, and the first one wins.
        "softmax_dtype": "float32",
    }


def _parameters(backend: Any) -> set[str]:
    """Names that the constructors of the backend and its parents take."""
    constructors = (inspect.signature(cls.__init__).parameters for cls in backend.__mro__)
    return {name for parameters in constructors for name in parameters}


def best_device() -> str:
    """Where models run unless something else is asked for."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


class _GivenContext:
    """With `context_is_given` a template's last line break is not asked for as a part of the answer.

    lm-eval moves blanks at the end of a context to the continuation, as many tokenizers join a blank to the next word.
    Where the context's own tokens stay the same with the answer after it, there is no need for that, and a model that
    was never asked to write the line break would be judged by it.
    """

    context_is_given = False

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        lm: Any = self
        apart = _apart(lm.tok_encode, context, continuation) if self.context_is_given else None
        return apart or super()._encode_pair(context, continuation)  # type: ignore[misc]


class _AskedInText:
    """A model of text and images is asked in text, and loaded by the class that transformers has for it."""

    def _get_config(self, *arguments: Any, **more: Any) -> None:
        super()._get_config(*arguments, **more)  # type: ignore[misc]
        lm: Any = self
        without_kernels(lm._config)

    def _create_model(self, *arguments: Any, **more: Any) -> None:
        lm: Any = self
        create = super()._create_model  # type: ignore[misc]
        elsewhere = any(more.get(key) for key in ("autogptq", "gptqmodel", "gguf_file"))
        if not elsewhere and create.__module__ == "lm_eval.models.huggingface":  # other loaders take no config
            more = {"config": lm._config, **more}
        create(*arguments, **more)

    def _get_backend(self, config: Any, *arguments: Any, **more: Any) -> None:
        lm: Any = self
        chosen_before = lm.AUTO_MODEL_CLASS
        super()._get_backend(config, *arguments, **more)  # type: ignore[misc]
        if chosen_before is None and lm.backend == "causal":
            lm.AUTO_MODEL_CLASS = auto_class(config)


def _watched(backend: Any, batch_size: int | None, report_share: Callable[[float], None]) -> Any:
    """`backend`, with requests handed to it in slices where it runs on the CPU.

    Two of the methods that its transformers backend is made of are overridden as well, so that the head and the softmax
    run where an answer is and not over its prompt: with a vocabulary of 49,152 that is a third of the work. On an accelerator and for other backends, a call goes through whole:
    there lm-eval's own search for the batch size, or the server's own scheduling, does better.
    """

    def fitting(longest: int) -> int:
        return batch_size or max(1, _BATCH_TOKENS // longest)

    class Watched(_GivenContext, _AskedInText, backend):  # type: ignore[misc]  # any of lm-eval's backends
        answers_from = 0

        def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[Any]:  # noqa: ARG002
            if not _batches_are_ours(self):
                return _whole(super().loglikelihood, requests, report_share)
            lengths = [sum(map(len, self.tokenizer(list(request.args[:2]))["input_ids"])) for request in requests]
            slices = _by_length(requests, lengths, fitting)
            return _in_slices(self, super().loglikelihood, requests, slices, report_share)

        def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[Any]:  # noqa: ARG002
            if not _batches_are_ours(self):
                return _whole(super().loglikelihood_rolling, requests, report_share)
            lengths = [max(1, min(len(self.tok_encode(request.args[0])), self.max_length)) for request in requests]
            slices = _by_length(requests, lengths, fitting)
            return _in_slices(self, super().loglikelihood_rolling, requests, slices, report_share)

        def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[Any]:  # noqa: ARG002
            if not _batches_are_ours(self):
                return _whole(super().generate_until, requests, report_share)
            lengths = [len(self.tok_encode(request.args[0])) for request in requests]
            slices = _by_length(requests, lengths, lambda _: batch_size or _GENERATED_AT_ONCE)
            return _in_slices(self, super().generate_until, requests, slices, report_share)

        def _loglikelihood_tokens(self, requests: Sequence[Any], *arguments: Any, **more: Any) -> list[Any]:
            """Take note of where the earliest answer begins: the vocabulary's logits before it are of no use."""
            if _batches_are_ours(self) and _keeps_last_logits(self) and requests:
                self.answers_from = min(_answer_start(self.max_length, *each[1:]) for each in requests)
            try:
                return super()._loglikelihood_tokens(requests, *arguments, **more)  # type: ignore[no-any-return]
            finally:
                self.answers_from = 0

        def _model_call(self, inps: Any, *arguments: Any, **more: Any) -> Any:
            """The logits from the earliest answer on: lm-eval counts positions from the end, and copes with fewer."""
            if not self.answers_from:
                return super()._model_call(inps, *arguments, **more)
            import torch

            with torch.no_grad():
                return self.model(inps, logits_to_keep=inps.shape[1] - self.answers_from).logits

    Watched.__name__ = Watched.__qualname__ = backend.__name__
    return Watched


def _apart(encode: Callable[[str], list[int]], context: str, continuation: str) -> tuple[list[int], list[int]] | None:
    """Tokens of a context and of what follows it; None where the tokenizer joins the two."""
    given, both = encode(context), encode(context + continuation)
    return (given, both[len(given) :]) if given and both[: len(given)] == given and len(both) > len(given) else None


def _batches_are_ours(lm: Any) -> bool:
    """Whether lm-eval leaves us to say how large a batch is: its transformers backend, on the CPU."""
    return hasattr(lm, "batch_size_per_gpu") and getattr(getattr(lm, "device", None), "type", None) == "cpu"


def _keeps_last_logits(lm: Any) -> bool:
    """Whether the model is causal, runs in its own precision, and can leave out the logits of the first positions."""
    plain = getattr(lm, "backend", None) == "causal" and getattr(lm, "mixed_precision_dtype", None) is None
    return plain and "logits_to_keep" in inspect.signature(lm.model.forward).parameters


def _answer_start(max_length: int, context: Sequence[int], answer: Sequence[int]) -> int:
    """Position of the logits that predict the answer's first token; too long a context is cut from the left."""
    return min(len(context) + len(answer) - 1, max_length) - len(answer)


def _whole(ask: Callable[..., list[Any]], requests: Sequence[Any], report_share: Callable[[float], None]) -> list[Any]:
    answers = ask(requests, disable_tqdm=True)
    report_share(1.0)
    return answers


def _by_length(
    requests: Sequence[Any], lengths: Sequence[int], batch: Callable[[int], int]
) -> list[tuple[int, list[int]]]:
    """(batch size, indices of the requests) of each slice, the longest first, the choices of an item together.

    lm-eval takes answers of one token to the same prompt from one forward pass, so a slice must not part them.
    """
    items: dict[Any, list[int]] = defaultdict(list)
    for index, request in enumerate(requests):
        items[request.task_name, request.doc_id].append(index)
    longest = {item: max(lengths[index] for index in members) for item, members in items.items()}
    slices: list[tuple[int, list[int]]] = []
    enough = max(1, len(requests) // _SLICES)
    for item in sorted(items, key=lambda item: -longest[item]):
        if not slices or len(slices[-1][1]) >= max(enough, slices[-1][0]):
            slices.append((batch(longest[item]), []))
        slices[-1][1].extend(items[item])
    return slices


def _in_slices(
    lm: Any,
    ask: Callable[..., list[Any]],
    requests: Sequence[Any],
    slices: Sequence[tuple[int, list[int]]],
    report_share: Callable[[float], None],
) -> list[Any]:
    answers: list[Any] = [None] * len(requests)
    done, given = 0, lm.batch_size_per_gpu
    try:
        for size, indices in slices:
            lm.batch_size_per_gpu = size
            found = ask([requests[index] for index in indices], disable_tqdm=True)
            for index, answer in zip(indices, found, strict=True):
                answers[index] = answer
            done += len(indices)
            report_share(done / len(requests))
    finally:
        lm.batch_size_per_gpu = given
    return answers
