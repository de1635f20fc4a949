from __future__ import annotations

from pathlib import Path

from deltamend.machine.digests import fingerprint, json_sha256


def test_the_digest_is_that_of_json_with_sorted_keys() -> None:
    # printf '{"a": [1, null], "b": "\\\\u00e9"}' | sha256sum
    expected = "a7ecfa31489e9c28927c541bb96de73d43f080fb97dde6fddaf3f838b2826bce"
    assert json_sha256({"b": "é", "a": [1, None]}) == expected
    assert json_sha256({"b": "é", "a": (1, None)}) == json_sha256({"a": [1, None], "b": "é"})


def test_a_path_counts_as_its_text() -> None:
    assert json_sha256({"file": Path("a/b")}) == json_sha256({"file": "a/b"})


def test_a_fingerprint_is_the_beginning_of_the_digest() -> None:
    assert fingerprint([1, 2]) == json_sha256([1, 2])[:8]
    # printf '[1, 2]' | sha256sum
    assert fingerprint([1, 2]) == "3a316d6d"


def test_equal_settings_have_one_fingerprint_and_others_another() -> None:
    assert fingerprint({"lr": 1e-4, "seed": 0}) == fingerprint({"seed": 0, "lr": 1e-4})
    assert fingerprint({"lr": 1e-4, "seed": 0}) != fingerprint({"lr": 1e-4, "seed": 1})
