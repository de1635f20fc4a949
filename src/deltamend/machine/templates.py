"""Render Jinja text that somebody else wrote, in a child with limits on its time, its memory and the length of its text.

Jinja's sandbox keeps a template from Python's objects. It does not keep it from running for ever or filling the memory.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import sys
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest import mock

import jinja2

from deltamend.errors import DeltamendError
from deltamend.machine.children import Child, python_child

_PROGRAM = Path(__file__).with_name("template_child.py")
_SECONDS = 10.0
"""Of processor time that a template may take; many short ones may take more together."""
_PATIENCE = 120.0
"""Seconds of the clock to wait for an answer; the child's own limit, on processor time, is far shorter."""
_ALWAYS, _TIMES = 200_000, 10
"""Characters that a rendered text may have, and how often as many as went into it."""
_AT_ONCE = 1000
"""Items in one request."""
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
_PLACES = ("transformers.tokenization_utils_base", "transformers.processing_utils")
"""Modules of transformers that have a name of their own for the function that renders."""
_RENDER = "render_jinja_template"


class TemplateLimitError(DeltamendError):
    """A template takes more time or memory, or writes a longer text, than is allowed."""


class TemplateTextError(DeltamendError):
    """A Jinja text is wrong, or does something to the fields of an item that cannot be done.

    Attributes:
        item: the place of the item in the list; None where the text itself is wrong.
    """

    def __init__(self, reason: str, item: int | None = None) -> None:
        super().__init__(reason)
        self.item = item


def check_template(template: str) -> None:
    """Raise TemplateTextError where a Jinja text is wrong, and TemplateLimitError where it cannot even be compiled."""
    _texts("check", [[template]])


def render_texts(template: str, items: Sequence[Mapping[str, Any]]) -> list[str]:
    """The text of a Jinja template for each item; a field that is missing is an error.

    Args:
        template: the Jinja text.
        items: the fields of each: what JSON can hold. Of another value the template gets the text that `str` makes of it.

    Raises:
        TemplateTextError: the template is wrong, or does something to a field that cannot be done.
        TemplateLimitError: it exceeds a limit.
    """
    return _texts("text", [[template, dict(fields)] for fields in items])


def _texts(kind: str, many: Sequence[Sequence[Any]]) -> list[str]:
    texts = []
    for start in range(0, len(many), _AT_ONCE):
        for number, answer in enumerate(_shared_child().ask(kind, many[start : start + _AT_ONCE]), start):
            if answer.get("kind") == "limit":
                raise TemplateLimitError(f"the Jinja text was stopped: {answer['error']}")
            if "error" in answer:
                raise TemplateTextError(answer["error"], None if kind == "check" else number)
            texts.append(answer["rendered"])
    return texts


@contextmanager
def limited_templates() -> Iterator[None]:
    """Within the block, transformers renders every chat template in a child.

    Raises:
        DeltamendError: this version of transformers renders templates in another way.
    """
    with ExitStack() as stack:
        for place in _PLACES:
            module = importlib.import_module(place) if place == _PLACES[0] else sys.modules.get(place)
            if module is None:  # nothing has called it there yet, and deltamend itself never does
                continue
            if not hasattr(module, _RENDER):
                raise DeltamendError(
                    f"this transformers renders chat templates in a way that deltamend does not know ({place} has no {_RENDER}); "
                    "install another version"
                )
            stack.enter_context(mock.patch.object(module, _RENDER, _render_chat))
        yield


def _render_chat(**arguments: Any) -> Any:
    """What transformers' `render_jinja_template` gives for these arguments, and the errors that it raises."""
    (answer,) = _shared_child().ask("chat", [[arguments]])
    if answer.get("kind") == "limit":
        raise TemplateLimitError(f"the chat template was stopped: {answer['error']}")
    if answer.get("kind") == "template":
        raise jinja2.TemplateError(answer["error"])
    if "error" in answer:
        raise ValueError(answer["error"])
    rendered, indices = answer["rendered"]
    return rendered, indices


class _Child:
    """A child that renders, started when it is first asked, and again after it was ended for exceeding a limit.

    Args:
        seconds: of processor time that a template may take.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._process: Child | None = None
        self._owner = os.getpid()

    def ask(self, kind: str, many: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
        """What the child renders of several, up to the first that fails."""
        contents = [json.dumps(arguments, default=str) for arguments in many]
        longest = _ALWAYS + _TIMES * max(map(len, contents))
        line = f'{{"kind": "{kind}", "longest": {longest}, "many": [{", ".join(contents)}]}}\n'.encode()
        with self._lock:
            return self._exchange(line)

    def _exchange(self, line: bytes) -> list[dict[str, Any]]:
        if self._process is None or self._process.poll() is not None or self._owner != os.getpid():
            self._process, self._owner = python_child(_PROGRAM, str(self._seconds), variables=_ONE_THREAD), os.getpid()
            weakref.finalize(self, _end, self._process)
        process = self._process
        if process.stdin is None or process.stdout is None:
            raise AssertionError("a child without pipes")
        try:
            process.stdin.write(line)
            process.stdin.flush()
            waiting = select.poll()  # select takes no descriptor above 1,023
            waiting.register(process.stdout, select.POLLIN)
            ready = waiting.poll(_PATIENCE * 1000)
            answer = process.stdout.readline() if ready else b""
        except BrokenPipeError:
            answer = b""
        except BaseException:  # an answer that is not fetched must not become that of the next question
            self._forget(process)
            raise
        if answer.endswith(b"\n"):
            found: list[dict[str, Any]] = json.loads(answer)
            return found
        self._forget(process)
        if process.returncode == -signal.SIGPROF or not ready:
            return [{"error": f"it takes more than {self._seconds:g} seconds", "kind": "limit"}]
        return [{"error": f"its process ended by itself ({process.returncode})", "kind": "limit"}]

    def _forget(self, process: Child) -> None:
        _end(process)
        self._process = None


@lru_cache(1)
def _shared_child() -> _Child:
    return _Child(_SECONDS)


def _end(process: Child) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()
