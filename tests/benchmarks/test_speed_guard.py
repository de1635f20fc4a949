"""No path of a repair takes a fifth more processor time than it did, in units of plain numpy on the same machine."""

from __future__ import annotations

import subprocess
import sys

import pytest

from benchmarks.speed import guard


def test_a_path_that_takes_a_fifth_more_is_slower() -> None:
    recorded = {"filter": 1.0, "elementwise": 2.0}
    assert guard.slower({"filter": 1.19, "elementwise": 2.5}, recorded) == ("elementwise",)


def test_what_seems_slower_once_is_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    later = iter([{"filter": 2.0, "untouched": 1.0}, {"filter": 1.1}])
    asked: list[tuple[str, ...]] = []

    def measured(paths: tuple[str, ...] = ("filter", "untouched")) -> dict[str, float]:
        asked.append(paths)
        return next(later)

    monkeypatch.setattr(guard, "measured", measured)
    assert guard.checked({"filter": 1.0, "untouched": 1.0}) == ({"filter": 1.1, "untouched": 1.0}, ())
    assert asked == [("filter", "untouched"), ("filter",)]


def test_what_stays_slower_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "measured", lambda *_: {"filter": 2.0})
    assert guard.checked({"filter": 1.0}) == ({"filter": 2.0}, ("filter",))


@pytest.mark.slow
@pytest.mark.skipif(guard.processor() not in guard.read_record(), reason="nothing is recorded for this processor")
def test_no_path_is_slower_than_recorded() -> None:
    shown = subprocess.run([sys.executable, "-m", "benchmarks.speed.guard"], capture_output=True, text=True)
    assert shown.returncode == 0, shown.stdout + shown.stderr
