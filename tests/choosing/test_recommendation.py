from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

import deltamend
from deltamend.calibration.activations import write_activations
from deltamend.checkpoint.safetensors_header import read_header
from deltamend.errors import CheckpointError, UsageError
from deltamend.language_models.loading import load
from deltamend.methods.input_moments import VERSION
from tests.conftest import Pair, gpt2
from tests.evaluation.conftest import save_tokenizer, tiny_model

__all__ = ["tiny_model"]


@pytest.fixture
def pair(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pair:
    """The tiny chat model, and the same with noise on every weight."""
    monkeypatch.setenv("DELTAMEND_CACHE", str(tmp_path / "cache"))
    model, tokenizer = load(tiny_model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "finetuned")
    tokenizer.save_pretrained(tmp_path / "finetuned")
    return Pair(tiny_model, tmp_path / "finetuned")


@pytest.mark.slow
def test_auto_is_two_sided_by_what_both_models_wrote_and_says_why(
    pair: Pair, tmp_path: Path, deltamend_cli: Callable[..., Any]
) -> None:
    printed = deltamend_cli("repair", pair.base, pair.finetuned, tmp_path / "out", "--method", "auto")
    assert printed.code == 0, printed.err
    assert "auto: two-sided keeps what the update does for its own task" in printed.out
    assert "the base was read in 48 texts that it wrote itself, the fine-tuned model in 8 of its own" in printed.out
    advice = deltamend.recommend(pair.base, pair.finetuned)
    assert (advice.method, advice.parameters["target"], advice.fallback) == ("two-sided", 0.4, False)
    assert "the base was read before, the fine-tuned model read before" in advice.reason
    deltamend.repair(pair.base, pair.finetuned, tmp_path / "again", method=advice.method, parameters=advice.parameters)
    report = deltamend.repair(pair.base, pair.finetuned, tmp_path / "python", method="auto")
    assert report.recommendation == advice
    name = "model.safetensors"
    for folder in ("again", "python"):
        assert (tmp_path / folder / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


@pytest.mark.slow
def test_of_a_base_alone_it_is_two_sided_by_the_update(pair: Pair, tmp_path: Path) -> None:
    advice = deltamend.recommend(pair.base)
    assert (advice.method, advice.fallback) == ("two-sided", False)
    assert advice.parameters.keys() == {"activations", "strength", "update", "identity"}
    deltamend.repair(pair.base, pair.finetuned, tmp_path / "out", method=advice.method, parameters=advice.parameters)


def _examples_file(folder: Path, lines: list[dict[str, str]]) -> Path:
    file = folder / "examples.jsonl"
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return file


@pytest.mark.slow
def test_with_examples_the_finetuned_model_reads_these_in_place_of_texts_of_its_own(
    pair: Pair, tmp_path: Path, deltamend_cli: Callable[..., Any]
) -> None:
    file = _examples_file(tmp_path, [{"prompt": f"number {i}", "response": "yes"} for i in range(3)])
    printed = deltamend_cli("repair", pair.base, pair.finetuned, tmp_path / "out", "--method", "auto", "--keep", file)
    assert printed.code == 0, printed.err
    assert "the fine-tuned model in 3 of your examples" in printed.out.replace("\n", " ")
    advice = deltamend.recommend(pair.base, pair.finetuned, keep=file)
    assert [advice.parameters[name] for name in ("strength", "update", "identity", "target")] == [1.0, 0.0, 0.1, 0.9]
    # The file of activations is that of `calibrate activations --chat` over the same examples.
    write_activations(pair.finetuned, tmp_path / "own.safetensors", texts=file, chat=True, tokens=512)
    assert (tmp_path / "own.safetensors").read_bytes() == Path(
        str(advice.parameters["target_activations"])
    ).read_bytes()
    file = _examples_file(tmp_path, [{"prompt": "number 4", "completion": "no"}])  # as `finetune` takes them
    other = deltamend.recommend(pair.base, pair.finetuned, keep=file)
    assert other.parameters["target_activations"] != advice.parameters["target_activations"]


@pytest.mark.slow
def test_wrong_examples_are_errors_and_no_reason_for_another_method(
    pair: Pair, tmp_path: Path, deltamend_cli: Callable[..., Any]
) -> None:
    run = partial(deltamend_cli, "repair", pair.base, pair.finetuned)
    out = tmp_path / "out"
    printed = run(out, "--method", "auto", "--keep", tmp_path / "none.jsonl")
    assert (printed.code, "none.jsonl: cannot be read" in printed.err) == (2, True)
    file = _examples_file(tmp_path, [{"text": "a"}])
    printed = run(out, "--method", "auto", "--keep", file)
    assert (printed.code, "examples.jsonl: text 1 has too few tokens to predict one" in printed.err) == (2, True)
    printed = run(out, "--method", "wise-ft", "--keep", file)
    assert (printed.code, "--keep: only --method auto takes examples" in printed.err) == (2, True)
    inside = _examples_file(tmp_path / "finetuned", [{"prompt": "a", "response": "b"}])
    out.mkdir()
    inside = inside.rename(out / "examples.jsonl")
    printed = run(out, "--method", "auto", "--keep", inside, "--overwrite")
    assert (printed.code, "OUT contains the input" in printed.err) == (1, True), printed.err
    assert inside.exists()
    with pytest.raises(UsageError, match=r"^keep: FINETUNED reads these examples"):
        deltamend.recommend(pair.base, keep=file)


@pytest.mark.slow
def test_where_the_finetuned_model_cannot_be_run_it_goes_by_the_update_and_says_so(pair: Pair) -> None:
    (pair.finetuned / "chat_template.jinja").write_text("{{ raise_exception('no') }}")
    advice = deltamend.recommend(pair.base, pair.finetuned)
    assert (advice.method, advice.fallback) == ("two-sided", True)
    assert advice.parameters == deltamend.recommend(pair.base).parameters
    assert (
        "the fine-tuned model cannot be run (the chat template fails (no); give texts), so that less is kept"
        in advice.reason
    )


@pytest.mark.slow
def test_a_finetuned_model_whose_tensors_have_other_names_goes_by_the_update(pair: Pair, tmp_path: Path) -> None:
    weights = load_file(pair.finetuned / "model.safetensors")
    names = {name: f"language_model.{name}" for name in weights}
    save_file({names[name]: tensor for name, tensor in weights.items()}, pair.finetuned / "model.safetensors")
    report = deltamend.repair(pair.base, pair.finetuned, tmp_path / "out", method="auto")
    assert report.recommendation is not None
    assert "target" not in report.recommendation.parameters
    assert report.recommendation.fallback


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")  # of peft, in transformers
def test_a_base_and_an_adapter_are_merged_and_run(pair: Pair, tmp_path: Path) -> None:
    model = peft.get_peft_model(load(pair.base).model, peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(str(tmp_path / "adapter"))
    whole = f"{pair.base}+{tmp_path / 'adapter'}"
    advice = deltamend.recommend(pair.base, whole)
    assert not advice.fallback
    deltamend.repair(pair.base, whole, tmp_path / "merged", method="none")
    target = Path(str(advice.parameters["target_activations"]))
    merged = deltamend.recommend(pair.base, tmp_path / "merged").parameters["target_activations"]
    assert target.read_bytes() == Path(str(merged)).read_bytes()
    assert {file.suffix for file in target.parent.iterdir()} == {".safetensors"}
    report = deltamend.repair(pair.base, whole, tmp_path / "out", method="auto", output="adapter")
    assert report.recommendation is not None
    assert report.recommendation.parameters == advice.parameters


@pytest.mark.slow
def test_a_damaged_file_is_made_again(pair: Pair) -> None:
    file = Path(str(deltamend.recommend(pair.base).parameters["activations"]))
    whole = file.read_bytes()
    stale = whole.replace(f'"activations":"{VERSION}"'.encode(), f'"activations":"{"0" * len(VERSION)}"'.encode())
    assert stale != whole
    data = 8 + int.from_bytes(whole[:8], "little")
    names = whole.replace(b"up_proj", b"UP_proj")
    flips = [
        whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in (data, (data + len(whole)) // 2, len(whole) - 1)
    ]
    for damaged in (whole[:-1], stale, names, *flips):
        file.write_bytes(damaged)
        advice = deltamend.recommend(pair.base)
        assert "read in 48 texts" in advice.reason
        assert read_header(file).metadata["activations"] == VERSION
    assert "read before" in deltamend.recommend(pair.base).reason
    assert list(file.parent.iterdir()) == [file]


def test_where_the_base_cannot_be_run_it_is_wise_ft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DELTAMEND_CACHE", str(tmp_path / "cache"))
    save_tokenizer(tmp_path / "gpt2")
    gpt2().save_pretrained(tmp_path / "gpt2")
    advice = deltamend.recommend(tmp_path / "gpt2")
    assert (advice.method, advice.parameters, advice.vectors) == ("wise-ft", {"alpha": 0.5}, 0.5)
    assert "stores its weights transposed" in advice.reason
    assert not any((tmp_path / "cache").iterdir())


@pytest.mark.slow
def test_another_chat_template_is_read_again(pair: Pair, tmp_path: Path) -> None:
    first = deltamend.recommend(pair.base).parameters
    shutil.copytree(pair.base, tmp_path / "base")
    (tmp_path / "base" / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    assert deltamend.recommend(tmp_path / "base").parameters != first


def test_a_base_that_is_not_there_is_an_error_and_parameters_are_not_mixed_in(
    pair: Pair, tmp_path: Path, deltamend_cli: Callable[..., Any]
) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        deltamend.recommend(tmp_path / "gone")
    printed = deltamend_cli("repair", pair.base, pair.finetuned, tmp_path / "o", "--method", "auto", "--set", "alpha=1")
    assert printed.code == 2
    assert "the method and its parameters are chosen automatically" in printed.err


EVIL = """
import pathlib
pathlib.Path(__file__).with_name("ran").touch()
from transformers import PretrainedConfig, PreTrainedModel
class Evil(PretrainedConfig):
    model_type = "evil"
"""


@pytest.mark.slow
def test_code_of_the_base_does_not_run_even_if_somebody_says_yes(pair: Pair, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(pair.base, base)
    config = json.loads((base / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}}
    (base / "config.json").write_text(json.dumps(config))
    (base / "evil.py").write_text(EVIL)
    environment = os.environ | {"HF_HOME": str(tmp_path / "hf")}
    command = [sys.executable, "-c", f"import deltamend; print(deltamend.recommend({str(base)!r}).reason)"]
    printed = subprocess.run(command, input="y\n" * 9, text=True, capture_output=True, env=environment, check=True)
    assert "wise-ft at 0.5 in place of two-sided, as the base cannot be run" in printed.stdout
    assert "[y/N]" not in printed.stdout + printed.stderr
    assert not list(tmp_path.rglob("ran"))


@pytest.mark.slow
def test_a_file_that_another_run_wrote_meanwhile_stays(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    from deltamend.calibration import activations

    written = activations.write_activations

    def second(folder: Path, out: Path, **options: Any) -> int:
        count = written(folder, out, **options)
        (out.parents[1] / out.name).write_bytes(b"the first one's, which is read already")
        return count

    monkeypatch.setattr(activations, "write_activations", second)
    file = Path(str(deltamend.recommend(pair.base).parameters["activations"]))
    assert file.read_bytes() == b"the first one's, which is read already"
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.slow
def test_a_cache_that_is_full_is_an_error_and_no_reason_for_another_method(pair: Pair, tmp_path: Path) -> None:
    limited = (
        "import resource, sys, deltamend\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try:\n"
        f"    print(deltamend.recommend({str(pair.base)!r}).reason)\n"
        "except deltamend.errors.OutputError as error:\n"
        "    print('OutputError', error)\n"
    )
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    printed = subprocess.run(
        [sys.executable, "-c", limited], text=True, capture_output=True, env=environment, check=True
    )
    assert printed.stdout.startswith("OutputError"), printed.stdout + printed.stderr
    assert not list((tmp_path / "cache").iterdir())


def test_a_base_with_an_adapter_is_repaired_with_wise_ft_and_quiet_does_not_hide_it(
    pair: Pair, tmp_path: Path, deltamend_cli: Callable[..., Any]
) -> None:
    advice = deltamend.recommend(f"{pair.base}+{tmp_path / 'adapter'}")
    assert (advice.method, advice.fallback) == ("wise-ft", True)
    assert "a model with an adapter" in advice.reason
    shutil.copytree(pair.base, tmp_path / "base")
    (tmp_path / "base" / "chat_template.jinja").write_text("{{ raise_exception('no') }}")
    printed = deltamend_cli("repair", tmp_path / "base", pair.finetuned, tmp_path / "out", "--method", "auto", "-q")
    assert printed.code == 0
    assert printed.out == ""
    assert printed.err.startswith("warning: auto: wise-ft at 0.5 in place of two-sided, as the base cannot be run")


@pytest.mark.slow
def test_what_a_config_says_of_vectors_holds_with_auto(
    pair: Pair, tmp_path: Path, deltamend_cli: Callable[..., Any]
) -> None:
    (tmp_path / "repair.yaml").write_text("vectors: base\n")
    out = tmp_path / "out"
    printed = deltamend_cli(
        "repair", pair.base, pair.finetuned, out, "--method", "auto", "--config", tmp_path / "repair.yaml"
    )
    assert printed.code == 0, printed.err
    assert json.loads((out / "deltamend.json").read_text())["options"]["vectors"] == "base"
