"""The program of a child that renders Jinja text of others, with limits on its memory and on its time.

It is run as a file, by `templates.py`, and imports nothing of deltamend. A request is a line of JSON on stdin, and its
answer a line of JSON on stdout.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

_MEMORY = 512 << 20
"""Bytes that rendering may take beside what the program itself takes."""
_EARNED = 0.05
"""Seconds of processor time that each render adds again to what earlier ones have used up."""


def _check(template: str) -> str:
    _compiled(template)
    return ""


def _text(template: str, fields: dict[str, Any]) -> str:
    return _compiled(template).render(fields)


@lru_cache(64)
def _compiled(template: str) -> jinja2.Template:
    return ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined).from_string(template)


def _chat(arguments: dict[str, Any]) -> Any:
    """The result of transformers' `render_jinja_template`."""
    return _transformers_renderer()(**arguments)


@lru_cache(1)
def _transformers_renderer() -> Callable[..., Any]:
    sys.modules["torch"] = None  # type: ignore[assignment]  # templates need no torch, which takes seconds and gigabytes
    from transformers.utils.chat_template_utils import render_jinja_template

    return render_jinja_template  # type: ignore[no-any-return]


_KINDS: dict[str, Callable[..., Any]] = {"check": _check, "text": _text, "chat": _chat}


def _memory() -> int:
    with open("/proc/self/statm") as file:  # noqa: PTH123 - no pathlib: this program starts often
        return int(file.read().split()[0]) * resource.getpagesize()


def _limit_memory(bytes_more: int | None) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = hard if bytes_more is None else _memory() + bytes_more
    resource.setrlimit(resource.RLIMIT_AS, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


def _answer(kind: str, arguments: list[Any], longest: int) -> dict[str, Any]:
    try:
        rendered = _KINDS[kind](*arguments)
        size = len(rendered) if isinstance(rendered, str) else sum(map(len, rendered[0]))
        if size > longest:
            return {"error": f"its text is longer than {longest:,} characters", "kind": "limit"}
    except MemoryError:
        return {"error": f"it takes more than {_MEMORY >> 20} MiB of memory", "kind": "limit"}
    except RecursionError:
        return {"error": "it calls itself without end", "kind": "limit"}
    except jinja2.TemplateError as error:
        return {"error": str(error) or type(error).__name__, "kind": "template"}
    except Exception as error:  # a template is a program, and may raise what it likes
        return {"error": f"{type(error).__name__}: {error}", "kind": "other"}
    return {"rendered": rendered}


def main() -> None:
    """Answer requests until stdin ends. The argument is how many seconds of processor time a render may take."""
    most = left = float(sys.argv[1])
    for line in sys.stdin.buffer:
        request = json.loads(line)
        if request["kind"] == "chat":
            _limit_memory(None)
            _transformers_renderer()
        answers = []
        for arguments in request["many"]:
            _limit_memory(_MEMORY)
            left = min(most, left + _EARNED)
            started = time.process_time()
            signal.setitimer(signal.ITIMER_PROF, left)  # the signal ends this process
            answers.append(_answer(request["kind"], arguments, request["longest"]))
            signal.setitimer(signal.ITIMER_PROF, 0)
            left = max(_EARNED, left - (time.process_time() - started))
            if "error" in answers[-1]:
                break
        sys.stdout.buffer.write(json.dumps(answers).encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
