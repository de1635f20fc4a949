"""`--method auto`, calibration and evaluation of models whose tensors have other names in the files than in memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lm_eval.api.instance import Instance
from safetensors.torch import load_file
from transformers import AutoTokenizer

import deltamend
from deltamend.calibration.fisher import write_fisher
from deltamend.evaluation.backend import BackendOptions, open_backend
from tests.conftest import Pair
from tests.evaluation.conftest import save_tokenizer
from tests.evaluation.tiny_suite import log_likelihood
from tests.inputs.architectures import build
from tests.reference import load

TEXTS = '{"prompt": "What is it?", "response": "It is a bird."}\n{"text": "One two three four."}\n'


def pair_of(name: str, folder: Path) -> Pair:
    """A tiny model with a tokenizer, and the same with noise on every weight."""
    model = build(name)
    for side in ("base", "finetuned"):
        model.save_pretrained(folder / side)
        save_tokenizer(folder / side)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.02 * torch.randn_like(parameter)
    return Pair(folder / "base", folder / "finetuned")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma3", "llava", "qwen2_5_vl"])
def test_auto_runs_the_base_and_finds_its_inputs_by_the_names_of_the_files(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DELTAMEND_CACHE", str(tmp_path / "cache"))
    pair = pair_of(name, tmp_path)
    report = deltamend.repair(pair.base, pair.finetuned, tmp_path / "out", method="auto")
    assert report.recommendation is not None
    assert not report.recommendation.fallback, report.recommendation.reason
    without_inputs = {tensor.name for tensor in report.tensors if "nothing of its input" in tensor.reason}
    base, finetuned, out = (load(tmp_path / side) for side in ("base", "finetuned", "out"))
    language = [tensor for tensor in finetuned if "layers.1" in tensor and tensor.endswith("proj.weight")]
    assert len(language) == 7
    assert not without_inputs & set(language)
    for tensor in language:
        assert not torch.equal(out[tensor], finetuned[tensor])
        assert (out[tensor] - base[tensor]).norm() < (finetuned[tensor] - base[tensor]).norm()
    assert all("vis" in tensor or "multi_modal" in tensor or "embed" in tensor for tensor in without_inputs)


def test_fisher_information_has_the_names_of_the_files(tmp_path: Path) -> None:
    pair = pair_of("gemma3", tmp_path)
    (tmp_path / "texts.jsonl").write_text(TEXTS)
    assert write_fisher(pair.base, tmp_path / "texts.jsonl", tmp_path / "fisher.safetensors") == 2
    fisher = load_file(tmp_path / "fisher.safetensors")
    assert fisher.keys() == load(pair.base).keys()
    assert float(fisher["language_model.model.layers.0.mlp.up_proj.weight"].sum()) > 0
    given = {"fisher": str(tmp_path / "fisher.safetensors")}
    report = deltamend.repair(pair.base, pair.finetuned, tmp_path / "out", method="fisher", parameters=given)
    assert {tensor.outcome for tensor in report.tensors if tensor.action == "filter"} == {"filtered"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma3", "llava"])
def test_a_multimodal_model_is_evaluated_in_text(name: str, tmp_path: Path) -> None:
    folder = pair_of(name, tmp_path).base
    lm = open_backend(str(folder), BackendOptions(device="cpu"), lambda _: None)
    request = Instance("loglikelihood", {}, ("one two", " three"), 0, ("task", 0, 1))
    ((found, _),) = lm.loglikelihood([request])
    model = type(build(name)).from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert found == pytest.approx(log_likelihood(model, tokenizer, "one two", " three"), rel=1e-4)
