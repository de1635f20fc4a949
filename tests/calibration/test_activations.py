from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import deltamend
from deltamend.calibration.activations import opening_of_a_message, own_texts, write_activations
from deltamend.errors import CheckpointError, UsageError
from deltamend.language_models.loading import _CLOCK, chat_prompt, clockless_template, load
from deltamend.methods.input_moments import EIGENVALUES, SAME_INPUT
from tests.calibration.conftest import Task
from tests.conftest import gpt2
from tests.evaluation.conftest import save_tokenizer, tiny_model

__all__ = ["tiny_model"]


@pytest.mark.slow
def test_it_is_the_second_moment_of_each_layers_inputs_each_of_length_one(task: Task, tmp_path: Path) -> None:
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"text": "1 a 2"}\n{"text": "3 a"}\n')
    out = tmp_path / "c"
    assert write_activations(task.base, out, texts=texts) == 5
    found = load_file(out)
    model, tokenizer = load(task.base)
    inputs: list[torch.Tensor] = []
    layer = model.model.layers[0].mlp.down_proj
    layer.register_forward_pre_hook(lambda _layer, given: inputs.append(given[0][0].detach()))
    for text in ("1 a 2", "3 a"):
        model(**tokenizer(text, return_tensors="pt", add_special_tokens=False))
    stacked = torch.nn.functional.normalize(torch.cat(inputs), dim=-1)
    name = "model.layers.0.mlp.down_proj.weight"
    vectors, values = found[name], found[f"{name}{EIGENVALUES}"]
    torch.testing.assert_close(vectors.T * values @ vectors, stacked.T @ stacked / 5, rtol=1e-4, atol=1e-6)
    assert len(values) <= 5


@pytest.mark.slow
def test_layers_with_one_input_share_it(tiny_model: Path, tmp_path: Path) -> None:
    write_activations(tiny_model, tmp_path / "c", samples=2, tokens=5)
    with safe_open(tmp_path / "c", "pt") as file:
        same = json.loads(file.metadata()[SAME_INPUT])
        held = set(file.keys())
    layer = "model.layers.0."
    assert (
        same[f"{layer}self_attn.k_proj.weight"]
        == same[f"{layer}self_attn.v_proj.weight"]
        == f"{layer}self_attn.q_proj.weight"
    )
    assert same[f"{layer}mlp.up_proj.weight"] == f"{layer}mlp.gate_proj.weight"
    assert not held & same.keys()
    assert "lm_head.weight" in held
    assert "model.embed_tokens.weight" not in held


def test_the_model_goes_on_from_the_beginning_of_a_message(tiny_model: Path) -> None:
    loaded = load(tiny_model)
    opening = opening_of_a_message(loaded.tokenizer)
    assert loaded.tokenizer.decode(opening) == "<|im_start|>user\n"
    texts = own_texts(loaded, samples=3, tokens=7, seed=1)
    assert [text[: len(opening)] for text in texts] == [opening] * 3
    assert {len(text) for text in texts} == {len(opening) + 7}
    state = torch.random.get_rng_state()
    assert own_texts(loaded, samples=3, tokens=7, seed=1) == texts
    assert own_texts(loaded, samples=3, tokens=7, seed=2) != texts
    assert torch.equal(torch.random.get_rng_state(), state)


def test_how_the_checkpoint_would_generate_does_not_count(tiny_model: Path) -> None:
    plain, odd = load(tiny_model), load(tiny_model)
    odd.model.generation_config.update(repetition_penalty=5.0, no_repeat_ngram_size=1, max_time=1e-9, num_beams=2)
    assert own_texts(odd, samples=2, tokens=9, seed=0) == own_texts(plain, samples=2, tokens=9, seed=0)


def test_a_template_that_writes_the_day_writes_the_same_one_every_day(tiny_model: Path) -> None:
    tokenizer = load(tiny_model).tokenizer
    tokenizer.chat_template = (
        "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y %f') %}{% endif %}"
        "Today: {{ date_string }} {{ messages[0]['content'] }}"
    )
    assert tokenizer.decode(opening_of_a_message(tokenizer)) == "Today: 26 Jul 2024 "


def test_a_template_that_looks_at_the_clock_is_always_told_the_same(tiny_model: Path) -> None:
    tokenizer = load(tiny_model).tokenizer
    tokenizer.chat_template = (
        "  {% for message in messages %}\n"
        "{% if message['content'] %}{{ strftime_now('%-d %B %Y, %H:%M:%S.%f') }} {{ message['content'] }}{% endif %}"
        "{% endfor %}"
    )
    assert tokenizer.decode(opening_of_a_message(tokenizer)) == "26 July 2024, 00:00:00.000000 "
    assert tokenizer.decode(chat_prompt(tokenizer, "a")) == "26 July 2024, 00:00:00.000000 a"


@pytest.mark.slow
def test_other_templates_write_what_they_did(tiny_model: Path) -> None:
    tokenizer = load(tiny_model).tokenizer
    assert clockless_template(tokenizer) is None
    asked = [{"role": "user", "content": "a"}]
    for template in ("\n\n {{ 1 }}", "  {% if true %}\n x{% endif %}", "  {%- if true %}y{% endif %}", " {{- 2 }}"):
        plain, told = (
            tokenizer.apply_chat_template(asked, tokenize=False, chat_template=before + template)
            for before in ("", _CLOCK)
        )
        assert told == plain


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ raise_exception('no users here') }}", "the chat template fails .no users here.; give texts"),
        ("{{ messages[0]['content'] | upper }}", "changes the user's message; give texts"),
    ],
)
def test_a_template_that_cannot_open_a_message_is_an_error_in_a_line(
    tiny_model: Path, template: str, said: str
) -> None:
    tokenizer = load(tiny_model).tokenizer
    tokenizer.chat_template = template
    with pytest.raises(UsageError, match=said):
        opening_of_a_message(tokenizer)


def test_a_model_that_is_not_there_is_an_error_in_a_line(tmp_path: Path, deltamend_cli: Callable[..., Any]) -> None:
    printed = deltamend_cli("calibrate", "activations", tmp_path / "gone", tmp_path / "c")
    assert printed.code == 1
    assert printed.err == f"deltamend: {tmp_path / 'gone'}: no such folder; give the folder of a checkpoint\n"


@pytest.mark.slow
def test_what_it_wrote_repairs_a_pair(tiny_model: Path, tmp_path: Path, deltamend_cli: Callable[..., Any]) -> None:
    model, tokenizer = load(tiny_model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "finetuned")
    tokenizer.save_pretrained(tmp_path / "finetuned")
    printed = deltamend_cli("calibrate", "activations", tiny_model, tmp_path / "c", "--samples", "4", "--tokens", "8")
    assert printed.code == 0, printed.err
    assert "--method null-space --set activations=" in printed.out
    out = tmp_path / "out"
    report = deltamend.repair(
        tiny_model, tmp_path / "finetuned", out, method="null-space", parameters={"activations": str(tmp_path / "c")}
    )
    assert 0 < report.kept_energy < 1
    untied = next(tensor for tensor in report.tensors if tensor.name == "model.embed_tokens.weight")
    assert (untied.outcome, untied.reason) == ("identity", "the file of activations has nothing of its input")


def test_weights_that_are_stored_transposed_are_refused(tmp_path: Path) -> None:
    save_tokenizer(tmp_path / "m")
    model = gpt2()
    model.save_pretrained(tmp_path / "m")
    (tmp_path / "texts.jsonl").write_text('{"text": "ab"}\n')
    with pytest.raises(CheckpointError, match="stores its weights transposed"):
        write_activations(tmp_path / "m", tmp_path / "c", texts=tmp_path / "texts.jsonl")
    assert not (tmp_path / "c").exists()


def test_weights_that_are_cut_off_or_of_another_shape_are_an_error_in_a_line(
    tiny_model: Path, tmp_path: Path, deltamend_cli: Callable[..., Any]
) -> None:
    config = json.loads((tiny_model / "config.json").read_text())
    whole = (tiny_model / "model.safetensors").read_bytes()
    damages: list[tuple[dict[str, int], bytes, str]] = [
        ({}, whole[:-9], "transformers cannot load it (SafetensorError: "),
        ({"intermediate_size": 32}, whole, "its weights hold 'model.layers.0.mlp.down_proj.weight' in another shape"),
        ({"num_hidden_layers": 3}, whole, "its weights hold no 'model.layers.2."),
    ]
    shutil.copytree(tiny_model, tmp_path / "m")
    for settings, weights, said in damages:
        (tmp_path / "m" / "config.json").write_text(json.dumps(config | settings))
        (tmp_path / "m" / "model.safetensors").write_bytes(weights)
        printed = deltamend_cli("calibrate", "activations", tmp_path / "m", tmp_path / "c", "-q")
        assert (printed.code, printed.err.count("\n")) == (1, 1), printed.err
        assert f"{tmp_path / 'm'}: {said}" in printed.err
    assert not (tmp_path / "c").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("value", "own", "said"),
    [
        (float("nan"), True, "the weights of 'model.norm.weight' hold NaN or Inf"),
        (float("inf"), False, "the weights of 'model.norm.weight' hold NaN or Inf"),
        (3e38, True, "cannot write texts of its own (probability tensor contains"),
        (3e38, False, "the inputs of 'lm_head.weight' hold NaN or Inf"),
    ],
)
def test_a_model_that_makes_no_numbers_is_an_error_in_a_line(
    tiny_model: Path, tmp_path: Path, value: float, own: bool, said: str, deltamend_cli: Callable[..., Any]
) -> None:
    shutil.copytree(tiny_model, tmp_path / "m")
    weights = load_file(tiny_model / "model.safetensors")
    weights["model.norm.weight"].fill_(value)
    save_file(weights, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "texts").write_text('{"text": "abc"}\n')
    texts = [] if own else ["--texts", tmp_path / "texts"]
    printed = deltamend_cli("calibrate", "activations", tmp_path / "m", tmp_path / "c", *texts, "-q")
    assert (printed.code, printed.err.count("\n")) == (1, 1), printed.err
    assert f"{tmp_path / 'm'}: {said}" in printed.err
    assert not (tmp_path / "c").exists()
