from __future__ import annotations

import json
from collections.abc import Callable

from deltamend.methods.registry import all_methods
from tests.conftest import Printed

Cli = Callable[..., Printed]


def test_methods_are_listed_and_shown(deltamend_cli: Cli) -> None:
    listed = deltamend_cli("methods").out
    assert all(name in listed for name in all_methods())
    assert [row["name"] for row in json.loads(deltamend_cli("methods", "--json").out)] == list(all_methods())
    shown = deltamend_cli("methods", "show", "task_arithmetic").out
    assert "arXiv 2212.04089" in shown
    assert "weight" in shown
    assert all("\\n" not in deltamend_cli("methods", "show", name).out for name in all_methods())
    schema = json.loads(deltamend_cli("methods", "show", "dare", "--json").out)
    assert schema["properties"]["density"]["maximum"] == 1.0
    assert deltamend_cli("methods", "show", "dair").code == 2
