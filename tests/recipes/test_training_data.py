from __future__ import annotations

import os
from pathlib import Path

import pytest

from deltamend.errors import UsageError
from deltamend.recipes.training_data import read_training_data


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data.jsonl"


@pytest.mark.parametrize(
    ("line", "prompt", "completion"),
    [
        ('{"prompt": "a", "completion": "b", "id": 7}', "a", "b"),
        (
            '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}',
            [{"role": "user", "content": "a"}],
            [{"role": "assistant", "content": "b"}],
        ),
        (
            '{"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]}',
            [{"role": "user", "content": "a"}],
            [{"role": "assistant", "content": "b"}],
        ),
    ],
)
def test_all_shapes_are_read(line: str, prompt: object, completion: object, path: Path) -> None:
    path.write_text(f"\n{line}\n\n{line}", encoding="utf-8")
    found = read_training_data(path)
    assert [one.for_trl() for one in found] == 2 * [{"prompt": prompt, "completion": completion}]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "line 2: Invalid JSON"),
        ("[]", 'line 2: a line is {"prompt"'),
        ('{"text": "a"}', 'line 2: a line is {"prompt"'),
        ('{"prompt": "", "completion": "b"}', "line 2: prompt"),
        ('{"prompt": "a", "completion": ""}', "line 2: completion"),
        ('{"prompt": 7, "completion": "b"}', "line 2: prompt"),
        ('{"messages": []}', "line 2: messages: is no list of two messages or more"),
        ('{"messages": "ab"}', "line 2: messages: is no list of two messages or more"),
        (
            '{"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}',
            "not of the role assistant",
        ),
        ('{"messages": [{"role": "chef", "content": "a"}, {"role": "assistant", "content": "b"}]}', "line 2: prompt"),
        ('{"prompt": "a", "completion": [{"role": "assistant", "content": "b"}]}', "both text, or both lists"),
        ('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}', "are mixed"),
        ("[" * 100_000, "line 2: "),
    ],
)
def test_what_is_no_example_is_an_error_of_one_line(line: str, problem: str, path: Path) -> None:
    path.write_text('{"prompt": "a", "completion": "b"}\n' + line, encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        read_training_data(path)
    assert problem in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_file_without_examples_or_that_is_none_is_refused(path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_training_data(path)
    path.write_text("\n\n", encoding="utf-8")
    with pytest.raises(UsageError, match="holds no example"):
        read_training_data(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UsageError, match="not a regular file"):
        read_training_data(path)
