from __future__ import annotations

from importlib.metadata import version

from deltamend.machine.versions import installed_versions


def test_what_is_not_installed_is_left_out() -> None:
    assert installed_versions(["numpy", "no-such-package", "deltamend"]) == {
        "numpy": version("numpy"),
        "deltamend": version("deltamend"),
    }
