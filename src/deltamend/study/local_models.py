"""Models of a study that are read from this machine, in place of the hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deltamend.errors import UsageError, option
from deltamend.study.config import Study


def with_local_models(study: Study, given: Sequence[str]) -> Study:
    """The study with some of its models read from this machine.

    Args:
        study: as its file says it.
        given: NAME=PATH for each, the name as in the study, the path of a folder or a GGUF file.

    Raises:
        UsageError: there is no such model or path, or one is not written like this.
    """
    paths: dict[str, str] = {}
    names = [model.name for model in study.models]
    for text in given:
        name, _, path = text.partition("=")
        if name not in names:
            raise UsageError(f"{option('model')} {text!r}: no model {name!r}; there are {', '.join(names)}")
        if not path or not Path(path).exists():
            raise UsageError(
                f"{option('model')} {text!r}: {path or 'the path'} is not there; give a folder or a GGUF file"
            )
        paths[name] = str(Path(path).absolute())
    models = tuple(one.model_copy(update={"local": paths.get(one.name, one.local)}) for one in study.models)
    return study.model_copy(update={"models": models})
