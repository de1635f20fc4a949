"""Keep lm-eval, transformers, TRL and what they use quiet: their progress bars would disturb ours, and their prints JSON output."""

from __future__ import annotations

import functools
import importlib
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from typing import Any
from unittest import mock

from deltamend.language_models.loading import transformers_module

_UNWANTED: dict[tuple[str, str], Callable[..., Any]] = {
    # After each benchmark lm-eval would run git in the current folder, which complains where that is no repository, and
    # list the machine and its packages (2 s). The record has its own versions.
    ("lm_eval.evaluator", "get_git_commit_hash"): lambda: None,
    ("lm_eval.evaluator", "add_env_info"): lambda _results: None,
}
_BARS = ("lm_eval.api.task", "lm_eval.models.huggingface")
"""Modules of lm-eval that draw a bar whether one is wanted or not."""
_LOGS = ("lm_eval", "trl", "peft", "accelerate")
"""Loggers that have no switch of their own."""


@contextmanager
def third_parties_quiet() -> Iterator[None]:
    """No bars, logs below an error, prints to stdout or warnings of lm-eval, transformers, datasets, TRL and peft.

    What is replaced is only for show: where lm-eval has renamed it, its noise comes back and nothing else changes.
    """
    import datasets

    transformers = transformers_module()

    logs = [logging.getLogger(name) for name in _LOGS]
    levels, verbosity = [log.level for log in logs], transformers.logging.get_verbosity()
    bars = not datasets.are_progress_bars_disabled(), transformers.logging.is_progress_bar_enabled()
    for log in logs:
        log.setLevel(logging.ERROR)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        with ExitStack() as stack:
            stack.enter_context(redirect_stdout(sys.stderr))
            stack.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", module=r"(lm_eval|datasets|transformers|accelerate|trl|peft)\b")
            for (module, name), instead in _UNWANTED.items():
                if hasattr(owner := importlib.import_module(module), name):
                    stack.enter_context(mock.patch.object(owner, name, instead))
            for module in _BARS:
                if hasattr(owner := importlib.import_module(module), "tqdm"):
                    stack.enter_context(mock.patch.object(owner, "tqdm", functools.partial(owner.tqdm, disable=True)))
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)
        transformers.logging.set_verbosity(verbosity)
        if bars[0]:
            datasets.enable_progress_bars()
        if bars[1]:
            transformers.logging.enable_progress_bar()


class Truncations(logging.Handler):
    """Notes that lm-eval warns of having cut a prompt longer than the model's context, and keeps it from printing the warning."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.heard = False

    def emit(self, record: logging.LogRecord) -> None:
        """Take note of a warning."""
        self.heard = self.heard or "truncat" in record.getMessage().lower()


@contextmanager
def listening_for_truncations() -> Iterator[Truncations]:
    """Within the block, lm-eval's warnings are noted and not printed."""
    log, listener = logging.getLogger("lm_eval"), Truncations()
    level, handlers, propagates = log.level, log.handlers, log.propagate
    log.handlers, log.propagate = [listener], False
    log.setLevel(logging.WARNING)
    try:
        yield listener
    finally:
        log.handlers, log.propagate = handlers, propagates
        log.setLevel(level)
