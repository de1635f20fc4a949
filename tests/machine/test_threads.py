"""Workers give results in the order of their tasks, stop at the first failure, and leave BLAS and torch one thread each."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError

import pytest
from threadpoolctl import threadpool_info

from deltamend.errors import UsageError
from deltamend.machine.threads import Workers


def test_results_come_in_the_order_of_the_tasks() -> None:
    def late(number: int) -> int:
        time.sleep(0.02 * (4 - number))  # the first task ends last
        return number * number

    with Workers(4) as team:
        assert team.map(late, range(5)) == [0, 1, 4, 9, 16]
        assert team.map(late, []) == []


def test_tasks_run_side_by_side() -> None:
    meeting = threading.Barrier(3, timeout=10)
    with Workers(3) as team:
        team.map(lambda _: meeting.wait(), range(3))  # would break the barrier if one had to wait for another


def test_the_first_failure_is_raised_and_no_further_task_begins() -> None:
    begun: list[int] = []

    def work(number: int) -> None:
        begun.append(number)
        if number == 2:
            raise ValueError("the third task failed")

    with Workers(1) as team:
        with pytest.raises(ValueError, match="the third task failed"):
            team.map(work, range(100))
        assert team.stopped.is_set()
    assert begun == [0, 1, 2]


def test_the_cause_is_raised_and_not_that_other_tasks_were_cancelled() -> None:
    running = threading.Barrier(2, timeout=10)

    def work(number: int) -> None:
        running.wait()
        if number == 1:
            raise ValueError("the second task failed")
        team.stopped.wait(10)
        raise CancelledError  # as every writer of the output does

    with Workers(2) as team, pytest.raises(ValueError, match="the second task failed"):
        team.map(work, range(2))


def test_a_running_task_is_told_that_another_failed() -> None:
    started = threading.Event()

    def work(number: int) -> str:
        if number == 0:
            started.wait(10)
            raise KeyError("failed")
        started.set()
        return "stopped" if team.stopped.wait(10) else "never told"

    told: list[str] = []
    with Workers(2) as team, pytest.raises(KeyError, match="failed"):
        team.map(lambda number: told.append(work(number)), range(2))
    assert told == ["stopped"]


def test_leaving_the_block_stops_the_work() -> None:
    with Workers(1) as team:
        assert not team.stopped.is_set()
    assert team.stopped.is_set()


def test_there_is_one_worker_for_each_core_by_default() -> None:
    assert Workers(None).count == len(os.sched_getaffinity(0))
    assert Workers(3).count == 3


@pytest.mark.parametrize("count", [0, -1])
def test_less_than_one_worker_is_refused(count: int) -> None:
    with pytest.raises(UsageError, match=f"^workers: {count} is too few; give 1 or more$"):
        Workers(count)


def test_a_worker_has_one_blas_thread() -> None:
    def blas(_: int) -> set[int]:
        return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}

    with Workers(2) as team:
        assert team.map(blas, range(2)) == [{1}, {1}]


IMPORTED_LATE = """
import sys
from threadpoolctl import threadpool_info
from deltamend.machine.threads import one_thread_each

assert "scipy.linalg" not in sys.modules
with one_thread_each():
    import numpy, scipy.linalg
    blas = [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]
    assert len(blas) >= 2 and set(blas) == {1}, blas
"""


def test_the_blas_of_scipy_is_limited_though_it_is_loaded_late() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"}
    subprocess.run([sys.executable, "-c", IMPORTED_LATE], check=True, env=environment)


SIDE_BY_SIDE = """
import scipy.linalg  # so that its BLAS is there when the limit of 2 is set
import torch
from threadpoolctl import threadpool_info, threadpool_limits
import deltamend
from deltamend.machine.threads import one_thread_each

def blas():
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}

with threadpool_limits(2):
    torch.set_num_threads(2)
    first, second = one_thread_each(), one_thread_each()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert (torch.get_num_threads(), blas()) == (1, {1})
    second.__exit__(None, None, None)
    assert (torch.get_num_threads(), blas()) == (2, {2})
"""


@pytest.mark.slow
def test_repairs_side_by_side_share_one_limit_of_threads() -> None:
    # in a process of its own: this one is limited to one thread from beginning to end
    subprocess.run([sys.executable, "-c", SIDE_BY_SIDE], check=True)
