from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from deltamend.repairing.rules import MethodChoice
from deltamend.repairing.yaml_config import read_config
from tests.conftest import Pair, Printed

Cli = Callable[..., Printed]
DOCS = Path(__file__).parents[2] / "docs" / "methods"


def write(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.slow
def test_a_config_gives_the_bytes_the_command_line_gives(llama_pair: Pair, tmp_path: Path, deltamend_cli: Cli) -> None:
    config = {
        "base_model": str(llama_pair.base),
        "finetuned_model": str(llama_pair.finetuned),
        "out": str(tmp_path / "yaml"),
        "method": "dare",
        "parameters": {"density": 0.3, "seed": 4},
        "out_dtype": "float32",
        "exclude": "mlp",
        "vectors": 0.5,
    }
    printed = deltamend_cli("repair", "--config", write(tmp_path / "c.yaml", config))
    assert printed.code == 0, printed.err
    given = [*("--set", "density=0.3", "--set", "seed=4", "--out-dtype", "fp32", "-e", "mlp", "--vectors", "0.5")]
    folders = [llama_pair.base, llama_pair.finetuned, tmp_path / "options"]
    assert deltamend_cli("repair", *folders, "--method", "dare", *given).code == 0
    assert load_bytes(tmp_path / "yaml") == load_bytes(tmp_path / "options")
    # OUT and options on the command line win.
    printed = deltamend_cli("repair", tmp_path / "other", "--config", tmp_path / "c.yaml", "--set", "density=1")
    assert printed.code == 0, printed.err
    assert load_bytes(tmp_path / "other") != load_bytes(tmp_path / "yaml")


def load_bytes(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.glob("*.safetensors")}


def test_a_config_of_mergekit_is_understood(llama_pair: Pair, tmp_path: Path, deltamend_cli: Cli) -> None:
    density = [{"filter": "mlp", "value": 0.5}, {"filter": "*", "value": 0.2}]
    config = {
        "merge_method": "ties",
        "base_model": str(llama_pair.base),
        "models": [
            {"model": str(llama_pair.base)},
            {"model": str(llama_pair.finetuned), "parameters": {"density": density}},
        ],
        "parameters": {"lambda": 0.9},
        "dtype": "bfloat16",
    }
    printed = deltamend_cli("repair", tmp_path / "out", "--config", write(tmp_path / "c.yaml", config), "--json")
    assert printed.code == 0, printed.err
    methods = {tensor["name"]: tensor["method"] for tensor in json.loads(printed.out)["tensors"]}
    assert methods["model.layers.1.mlp.up_proj.weight"] == "ties weight=0.9 density=0.5"
    assert methods["lm_head.weight"] == "ties weight=0.9"  # 0.2 is the default


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [", "cannot be read as YAML"),
        ("- a", "expected lines of the form `key: value`"),
        ("densty: 1", "densty: there is no such field; the keys are base_model,"),
        ("method: tise", "no method 'tise'; did you mean 'ties'?"),
        ("rules: [{kind: atention}]", "rules.0.kind: 'atention' is not valid; expected 'attention'"),
        ("rules: [{layers: 3-}]", 'write it like "0-3,7"'),
        ("rules: [{filter: '('}]", "not a regular expression"),
        (
            "rules: [{kind: norm, method: dg-hard}]",
            "norms are not matrices; with kind=norm use one of the methods none, revert",
        ),
        ("rules: [{method: ties, parameters: {density: 3}}]", "'ties', parameter 'density'"),
        ("rules: 3", "expected a list of rules"),
        ("vectors: both", "vectors: 'both' is invalid; give finetuned, base, or a number from 0 to 1"),
        ("vectors: 1.5", "vectors: 1.5 is invalid; give finetuned, base, or a number from 0 to 1"),
        (
            "models: [{model: a}, {model: b}]",
            "models lists 2 models beside the base model, and deltamend repairs a single one",
        ),
        (
            "parameters: {normalize: true}\nmodels: [{model: a}]",
            "normalize has no effect with a single fine-tuned model",
        ),
        (
            "method: ties\nmodels: [{model: a, parameters: {weight: 0.5}}]",
            "give lambda in place of weight, or leave weight out",
        ),
        (
            "method: ties\nparameters: {density: [1, 0.5]}",
            "'ties', parameter 'density': Input should be a valid number",
        ),
    ],
)
def test_a_wrong_config_is_one_line_that_says_what_to_do(
    content: str, message: str, llama_pair: Pair, tmp_path: Path, deltamend_cli: Cli
) -> None:
    (tmp_path / "c.yaml").write_text(content)
    folders = [llama_pair.base, llama_pair.finetuned, tmp_path / "out"]
    printed = deltamend_cli("repair", *folders, "--config", tmp_path / "c.yaml")
    assert printed.code == 2
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_missing_folders_are_named(tmp_path: Path, deltamend_cli: Cli) -> None:
    config = write(tmp_path / "c.yaml", {"base_model": "base"})
    assert "finetuned_model is missing" in deltamend_cli("repair", "--config", config, tmp_path / "out").err
    assert "give BASE, FINETUNED and OUT" in deltamend_cli("repair", "base").err
    assert "--set: '[a' is not YAML" in deltamend_cli("repair", "a", "b", "c", "--set", "x=[a").err


def test_values_of_set_in_brackets_are_yaml(llama_pair: Pair, tmp_path: Path, deltamend_cli: Cli) -> None:
    steps = "steps=[{method: dg-hard}, {method: wise-ft, alpha: 0.25}]"
    folders = [llama_pair.base, llama_pair.finetuned, tmp_path / "out"]
    printed = deltamend_cli("repair", *folders, "--method", "hybrid", "--set", steps)
    assert printed.code == 0, printed.err


def test_the_configs_of_the_documentation_are_valid(tmp_path: Path) -> None:
    examples = (DOCS / "rules.md").read_text(encoding="utf-8").split("```yaml\n")[1:]
    assert len(examples) == 2
    for example in examples:
        (tmp_path / "c.yaml").write_text(example.split("```")[0])
        config = read_config(tmp_path / "c.yaml")
        MethodChoice(config.method, config.method_parameters, config.rules, config.vectors)
