from __future__ import annotations

import threading

from deltamend.progress import count_reporter, ignore_progress


def test_the_share_is_that_of_the_pieces_that_are_done() -> None:
    heard: list[tuple[str, float]] = []
    report = count_reporter(lambda name, share: heard.append((name, share)), 4)
    for name in "abcd":
        report(name)
    assert heard == [("a", 0.25), ("b", 0.5), ("c", 0.75), ("d", 1.0)]


def test_no_piece_is_lost_when_many_threads_report() -> None:
    shares: list[float] = []
    report = count_reporter(lambda _name, share: shares.append(share), 400)
    threads = [threading.Thread(target=lambda: [report("piece") for _ in range(50)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(shares) == [number / 400 for number in range(1, 401)]


def test_a_callback_may_report_in_turn() -> None:
    heard: list[str] = []
    inner = count_reporter(lambda name, _share: heard.append(name), 1)
    count_reporter(lambda name, _share: inner(name), 1)("piece")  # would wait for ever if the lock were held
    assert heard == ["piece"]


def test_progress_can_be_ignored() -> None:
    report = count_reporter(ignore_progress, 1)
    report("piece")
