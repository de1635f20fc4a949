"""The HTML templates of the pages: everything that is put into them is escaped, and a missing value is an error."""

from __future__ import annotations

import json
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from deltamend.machine.escaping import printable, printable_value


def page_template(name: str) -> Template:
    """A template of `report/templates`, by its file name."""
    environment = Environment(
        loader=PackageLoader("deltamend.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    environment.policies["json.dumps_function"] = _dumped
    return environment.get_template(name)


def _shown(value: object) -> object:
    """What is put into a page: text in which nothing acts, unless it is markup of ours."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _dumped(value: object, **options: Any) -> str:
    return json.dumps(printable_value(value), **options)
