from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import deltamend
from deltamend.calibration.fisher import squared_gradients, write_fisher
from deltamend.calibration.texts import as_examples, read_texts
from deltamend.errors import UsageError
from deltamend.language_models.loading import load
from tests.calibration.conftest import WORDS, Task


def test_with_given_labels_it_is_the_mean_squared_gradient_of_each_text(task: Task, tmp_path: Path) -> None:
    assert write_fisher(task.finetuned, task.texts, tmp_path / "f", labels="given") == 10
    found = load_file(tmp_path / "f")
    model = AutoModelForCausalLM.from_pretrained(task.finetuned, dtype=torch.float64)
    expected = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    for number in range(10):
        ids = torch.tensor([[WORDS.index(str(number)), WORDS.index("a"), WORDS.index(str((number + 1) % 10))]])
        model.zero_grad()
        model(ids).logits[0, 1].log_softmax(-1)[ids[0, 2]].backward()
        for name, parameter in model.named_parameters():
            expected[name] += parameter.grad**2 / 10
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name].double(), value, rtol=1e-3, atol=1e-4 * float(value.max()))


@pytest.mark.slow
def test_with_sampled_labels_it_tends_to_the_fisher_information(task: Task) -> None:
    loaded = load(task.base)
    examples = as_examples(read_texts(task.texts), loaded.tokenizer, chat=False, max_tokens=64)[:1]
    name = "lm_head.weight"
    expected = torch.zeros_like(loaded.model.lm_head.weight)
    ids = torch.tensor([[*examples[0].prompt]])
    for token in range(len(WORDS)):
        loaded.model.zero_grad()
        surprise = -loaded.model(ids).logits[0, -1].log_softmax(-1)[token]
        surprise.backward()
        expected += loaded.model.lm_head.weight.grad**2 * float(torch.exp(-surprise.detach()))
    loaded.model.zero_grad()
    draws = [squared_gradients(loaded, examples, labels="sampled", seed=seed)[name] for seed in range(300)]
    found = torch.stack(draws).mean(0)
    assert abs(float(found.sum() / expected.sum()) - 1) < 0.1
    again = squared_gradients(loaded, examples, labels="sampled", seed=7)[name]
    assert torch.equal(again, draws[7])


def test_the_method_takes_what_was_computed(task: Task, tmp_path: Path) -> None:
    write_fisher(task.finetuned, task.texts, tmp_path / "f")
    out = tmp_path / "out"
    report = deltamend.repair(
        task.base, task.finetuned, out, method="fisher", parameters={"fisher": str(tmp_path / "f")}
    )
    assert 0 < report.kept_energy < 1


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "holds no text"),
        ('{"text": "a"}\n{"prompt": "a"}', "line 2: a line is"),
        ('{"text": "a b", "prompt": "a", "response": "b"}', "line 1: a line is"),
        ('{"text": "a"}', "too few tokens"),
        ("nonsense", "line 1: Invalid JSON"),
    ],
)
def test_texts_that_mean_nothing_are_refused(task: Task, tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "texts").write_text(content)
    with pytest.raises(UsageError, match=says):
        write_fisher(task.finetuned, tmp_path / "texts", tmp_path / "f")
    assert [path.name for path in tmp_path.iterdir()] == ["texts"]


def test_a_line_ends_only_where_a_file_of_json_lines_ends_it(tmp_path: Path) -> None:
    texts = ["a\u2028b", "c\u0085\u2029d"]
    (tmp_path / "texts").write_bytes("\r\n".join(f'{{"text": "{text}"}}' for text in texts).encode())
    assert [line.text for line in read_texts(tmp_path / "texts")] == texts


def test_the_file_has_the_names_of_the_checkpoint_and_not_those_in_memory(task: Task, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    for path in task.finetuned.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / "m" / path.name).write_bytes(path.read_bytes())
    weights = load_file(task.finetuned / "model.safetensors")
    renamed = {name.removeprefix("model."): value for name, value in weights.items()}
    save_file(renamed, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
    for side, folder in (("whole", task.finetuned), ("renamed", tmp_path / "m")):
        write_fisher(folder, task.texts, tmp_path / side)
    whole, found = load_file(tmp_path / "whole"), load_file(tmp_path / "renamed")
    assert found.keys() == renamed.keys()
    for name, value in whole.items():
        assert torch.equal(found[name.removeprefix("model.")], value)
