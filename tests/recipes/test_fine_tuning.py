"""`deltamend finetune` on a random Llama of two layers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import deltamend
from deltamend.errors import DeltamendError, OutputError, UsageError
from deltamend.language_models.loading import load
from deltamend.recipes.registry import all_recipes
from tests.conftest import Printed, llama
from tests.evaluation.conftest import save_tokenizer
from tests.recipes.test_contract import SMALL

pytestmark = pytest.mark.slow

Cli = Callable[..., Printed]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama in fp32, tied as SmolLM2 is, with a tokenizer of bytes."""
    folder = tmp_path_factory.mktemp("base")
    llama(torch.float32, vocab_size=save_tokenizer(folder), tied=True).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sums(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Chats."""
    path = tmp_path_factory.mktemp("data") / "sums.jsonl"
    lines = [
        {"messages": [{"role": "user", "content": f"{a}+{b}"}, {"role": "assistant", "content": f"{a + b}"}]}
        for a in range(5)
        for b in range(5)
    ]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts and completions as plain text."""
    path = tmp_path_factory.mktemp("old") / "letters.jsonl"
    lines = [{"prompt": letter * 3, "completion": letter.upper() * 3} for letter in "abcdefgh"]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    return path


def train(base: Path, data: Path, out: Path, **options: Any) -> dict[str, torch.Tensor]:
    """The weights that training gives."""
    if not all_recipes()[options.get("recipe", "plain")].uses_old:
        options.pop("old", None)
    deltamend.finetune(base, data, out, **{"steps": 3, "batch": 4, "lr": 3e-3, "warmup": 0, **options})
    return load_file(out / "model.safetensors")


@pytest.fixture(scope="module")
def plain(base: Path, sums: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    return train(base, sums, tmp_path_factory.mktemp("plain") / "out")


@pytest.mark.parametrize("name", SMALL)
def test_every_recipe_trains_a_language_model(
    name: str, base: Path, sums: Path, letters: Path, plain: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    options = {"layers": "all-linear"} if name == "lora" else SMALL[name]
    found = train(base, sums, tmp_path / "out", recipe=name, settings=options, old=[letters])
    before = load_file(base / "model.safetensors")
    assert found.keys() == before.keys()
    assert any(not torch.equal(found[one], before[one]) for one in before)
    assert all(one.isfinite().all() for one in found.values())
    assert (name == "plain") == all(torch.equal(found[one], plain[one]) for one in plain)
    load(tmp_path / "out")
    record = json.loads((tmp_path / "out" / "finetune.json").read_text(encoding="utf-8"))
    assert record["recipe"] == name
    assert record["old_examples"] == ("given" if all_recipes()[name].uses_old else "none")
    assert f"| recipe | `{name}` |" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    if name == "cofitune":  # of two layers, the first is the one above a quarter and up to half of the depth
        moved = {one for one in before if not torch.equal(found[one], before[one])}
        assert moved == {f"model.layers.0.mlp.{part}_proj.weight" for part in ("up", "gate", "down")}


@pytest.mark.parametrize("name", [name for name, recipe in all_recipes().items() if recipe.off is not None])
def test_a_recipe_at_strength_0_gives_the_bytes_of_plain_training(
    name: str, base: Path, sums: Path, letters: Path, plain: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    off = all_recipes()[name].off or {}
    found = train(base, sums, tmp_path / "out", recipe=name, settings=off, old=[letters])
    assert all(torch.equal(found[one], plain[one]) for one in plain)


def test_the_base_writes_texts_where_there_are_no_old_examples(
    base: Path, sums: Path, letters: Path, tmp_path: Path
) -> None:
    results = [train(base, sums, tmp_path / name, recipe="a-gem", settings={"memory": 6}) for name in ("a", "b")]
    assert all(torch.equal(results[0][one], results[1][one]) for one in results[0])
    record = json.loads((tmp_path / "a" / "finetune.json").read_text(encoding="utf-8"))
    assert record["old_examples"] == "own texts"
    train(base, sums, tmp_path / "given", recipe="a-gem", settings={"memory": 6}, old=[letters])
    written, given = ((tmp_path / name / "generation_config.json").read_bytes() for name in ("a", "given"))
    assert written == given  # the texts were written with another one


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"recipe": "replay", "settings": {"share": 0.3}},
        {"weights": "bfloat16", "compute": "float32"},
        {"lora_rank": 2},
    ],
    ids=str,
)
def test_an_interrupted_run_goes_on_and_ends_with_the_same_bytes(
    options: dict[str, Any], base: Path, sums: Path, letters: Path, tmp_path: Path
) -> None:
    options = {"steps": 7, "checkpoint_every": 2, "old": [letters], **options}
    whole = train(base, sums, tmp_path / "whole", **options)
    steps: list[str] = []

    def stop(name: str, _share: float) -> None:
        steps.append(name)
        if len(steps) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(base, sums, tmp_path / "out", progress=stop, **options)
    assert not (tmp_path / "out").exists()
    seen: list[str] = []
    found = train(base, sums, tmp_path / "out", resume=True, progress=lambda name, _: seen.append(name), **options)
    assert seen[0] == "step 5 of 7"  # from the state after the fourth
    assert all(torch.equal(found[one], whole[one]) for one in whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]
    again: list[str] = []
    train(base, sums, tmp_path / "out", resume=True, progress=lambda name, _: again.append(name), **options)
    assert again == []  # it is complete


def test_another_run_is_not_continued(base: Path, sums: Path, tmp_path: Path) -> None:
    def stop(_name: str, _share: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(base, sums, tmp_path / "out", progress=stop)
    with pytest.raises(OutputError, match="had other inputs or options"):
        train(base, sums, tmp_path / "out", resume=True, seed=5)


def test_a_run_that_fails_leaves_nothing(base: Path, sums: Path, tmp_path: Path) -> None:
    with pytest.raises(DeltamendError, match=r"^fine-tuning: the loss is not finite at step \d+; lower lr \(1e\+30\)$"):
        train(base, sums, tmp_path / "out", lr=1e30, steps=6)
    assert list(tmp_path.iterdir()) == []


def test_an_output_is_never_an_input_and_never_replaced_unasked(base: Path, sums: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="OUT is the input"):
        train(base, sums, base, overwrite=True)
    with pytest.raises(OutputError, match="contains the input"):
        train(base, sums, sums.parent, overwrite=True)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("kept")
    with pytest.raises(OutputError, match="not empty"):
        train(base, sums, tmp_path / "out")
    with pytest.raises(OutputError, match="not empty"):
        train(base, sums, tmp_path / "out", resume=True)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]
    train(base, sums, tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "finetune.json").exists()


def test_what_does_not_fit_is_one_line(base: Path, sums: Path, letters: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="recipe lp-ft: trains the weights themselves and no adapter"):
        train(base, sums, tmp_path / "out", recipe="lp-ft", lora_rank=2)
    with pytest.raises(UsageError, match=r"recipe plain: takes no old examples; leave out `?old`?, or take another"):
        deltamend.finetune(base, sums, tmp_path / "out", old=[letters])
    with pytest.raises(UsageError, match="lr: Input should be greater than 0"):
        train(base, sums, tmp_path / "out", lr=-1.0)
    with pytest.raises(DeltamendError, match=r"drawn examples have a prompt of max_length \(8\)"):
        train(base, sums, tmp_path / "out", max_length=8)
    with pytest.raises(UsageError, match="old example 1: its prompt has"):
        train(base, letters, tmp_path / "out", recipe="ewc", old=[sums], max_length=10)
    assert list(tmp_path.iterdir()) == []


def test_the_command_trains_and_says_what_it_did(base: Path, sums: Path, tmp_path: Path, deltamend_cli: Cli) -> None:
    out = tmp_path / "out"
    common = ("finetune", base, "--data", sums, out, "--steps", 2, "--batch", 4)
    printed = deltamend_cli(*common, "--recipe", "ewc", "--set", "strength=0")
    assert printed.code == 0, printed.err
    assert "2 steps by ewc: loss" in printed.out
    assert f"wrote {out}; next: deltamend diagnose {base} {out}" in printed.out
    printed = deltamend_cli(*common)
    assert printed.code == 1
    assert "not empty; give another OUT, or --overwrite to replace it" in printed.err
    assert len(printed.err.splitlines()) == 1
    printed = deltamend_cli(*common, "--overwrite", "--recipe", "ecw")
    assert (printed.code, printed.err) == (2, "deltamend: no recipe 'ecw'; did you mean 'ewc'\n".replace("'\n", "'?\n"))
