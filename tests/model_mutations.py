"""Damaged configs, tokenizers and chat templates, each made from a seed, under the commands that run a model.

    python -m tests.model_mutations [--count 100] [--first 0]

`evaluate`, `calibrate activations` and `repair --method auto` are run in turn, each in a process of its own that this one
forks. What counts as lost: a traceback, a process that dies, an exit code above 2, a failure that is not one printable line,
more than 60 s of processor time, or more than twice the memory of the same command on an undamaged model. Prints the seeds of
what was lost and exits 1.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from tests.evaluation.conftest import save_tokenizer
from tests.forked_command_line import FAILED, become_command_line
from tests.mutations import STRANGE, _cut, _flip, _json, _repeat

SECONDS = 60
FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
KEYS: dict[str, tuple[Any, ...]] = {
    "attn_implementation": ("somebody/kernel", "flash_attention_2", 3, {"": "x/y"}),
    "auto_map": ({"AutoConfig": "modeling.Config", "AutoTokenizer": ["modeling.T", None]}, "x", [1]),
    "num_hidden_layers": (10**9, 10**30, -1, "2", 2.5, 3),
    "num_labels": (10**9, -3, "x"),
    "layer_types": (["full_attention"], "x", [None, None], ["sliding_attention", "full_attention"]),
    "vocab_size": (10**9, 10**12, 1, 0, -5),
    "hidden_size": (10**6, 0, -8, 63, 10**30),
    "intermediate_size": (10**9, 1),
    "head_dim": (10**9, 0, 7, 10**30),
    "num_attention_heads": (0, 3, 10**9, -4),
    "num_key_value_heads": (0, 3, 10**9),
    "max_position_embeddings": (0, 1, -1, 10**12, "x"),
    "rope_scaling": ({"rope_type": "yarn", "factor": 1e308}, {"rope_type": "longrope", "long_factor": [1]}, {"type": "x"}, 3),
    "rope_theta": (0, -1, "x", 1e308),
    "rope_parameters": ({}, {"rope_type": "dynamic", "rope_theta": 10000, "factor": 10**9}, [1]),
    "quantization_config": ({"quant_method": "gptq", "bits": 4}, {"quant_method": "x"}, {}, {"quant_method": "bitsandbytes"}),
    "dtype": ("float8_e4m3fn", "x", 3, "int8", "complex64"),
    "torch_dtype": ("x", "storage", "float64"),
    "model_type": ("x", "t5", "gpt2", "mamba", "llava", "", 3, None),
    "architectures": ([], ["X"], "LlamaForCausalLM", [3], None),
    "hidden_act": ("x", 3, None),
    "rms_norm_eps": ("x", float("inf"), -1),
    "pad_token_id": (10**9, -1, "x", [1]),
    "eos_token_id": (10**9, -7, "x", [], [1, "x"]),
    "tokenizer_class": ("X", "T5Tokenizer", "BertTokenizerFast", 3, "GPT2Tokenizer"),
    "added_tokens_decoder": ({"999999999": {"content": "x"}}, {"x": {}}, [1]),
    "bos_token": ({"content": 3}, 3, ["x"], {"__type": "AddedToken"}),
    "model_max_length": (0, -1, 10**30, "x", 1),
    "chat_template": (3, [], {"default": "{{ messages }}"}, [{"name": "x"}], "{% for a in range(99999) %}{% endfor %}" * 50),
    "extra_special_tokens": ({"x": 3}, ["a"], 3),
    "sliding_window": (0, -1, "x", 10**12),
    "torchscript": ("x", True),
    "is_encoder_decoder": (True, "x"),
    "tie_word_embeddings": (True, "x"),
    "use_cache": ("x", False),
    "pruned_heads": ({"0": [0]}, {"x": 3}),
    "padding": ({"strategy": {"Fixed": 10**9}, "direction": "Right", "pad_id": 0, "pad_type_id": 0, "pad_token": "x"},),
    "truncation": ({"max_length": 0, "strategy": "LongestFirst", "stride": 10**9, "direction": "Right"},),
    "do_sample": (True, "x"),
    "max_length": (0, -1, 10**12),
    "temperature": (0, -1, "x"),
}  # fmt: skip
"""Keys that somebody may set, and values that mean harm or nothing."""
LOOP = "{% for a in range(99999) %}"
TEMPLATES = (
    "",
    "{{ messages",
    "{{ x.y.z }}",
    "{{ raise_exception('no\nsystem\x1b[31m') }}",
    LOOP * 4 + "{% endfor %}" * 4,
    "{{ 'x' * 999999999 }}",
    "{% set n = namespace(t='x') %}{% for i in range(40) %}{% set n.t = n.t + n.t %}{% endfor %}{{ n.t }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{{ 9 ** (9 ** 9) }}",
    "{% if a %}" * 20_000,
    "\ud800\x00",
)


class Ended(NamedTuple):
    """How a command ended: its code (negative for a signal), what it printed on stderr, processor seconds and peak KiB."""

    code: int
    errors: str
    seconds: float
    memory: int


def model(folder: Path) -> None:
    """Write an undamaged model of two layers with a tokenizer of bytes."""
    import torch
    from transformers import GenerationConfig

    from tests.conftest import llama

    made = llama(torch.float32, vocab_size=save_tokenizer(folder))
    made.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2)
    made.save_pretrained(folder)


def mutate(folder: Path, seed: int) -> None:
    """Damage one or two of a model's files."""
    chance = random.Random(seed)
    for _ in range(chance.choice([1, 1, 2])):
        file = folder / chance.choice(FILES)
        content = file.read_bytes()
        if file.suffix == ".jinja":
            text = chance.choice(TEMPLATES).encode("utf-8", "surrogatepass")
            content = chance.choice(
                [text, text, _flip(content, chance), _cut(content, chance), _repeat(content, chance)]
            )
        elif chance.random() < 0.5:
            content = _with_key(content, chance)
        else:
            content = chance.choice([_json, _json, _flip, _cut, _repeat])(content, chance)
        file.write_bytes(content)


def _with_key(content: bytes, chance: random.Random) -> bytes:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return content
    if not isinstance(value, dict):
        return content
    key = chance.choice(list(KEYS))
    value[key] = chance.choice([*KEYS[key], *KEYS[key], chance.choice(STRANGE)])
    return json.dumps(value).encode("utf-8", "surrogatepass")


def commands(damaged: Path, whole: Path, scratch: Path) -> tuple[list[str], ...]:
    """The commands that run a model, each on the damaged one."""
    items = scratch.parent / "items.jsonl"
    if not items.exists():
        lines = [{"question": "Is 1 odd?", "choices": ["Yes", "No"], "gold": 0}, {"question": "Why?", "choices": ["A", "B"], "gold": 1}]  # fmt: skip
        items.write_text("".join(json.dumps(line) + "\n" for line in lines))
    evaluated = [
        "evaluate",
        str(damaged),
        "--task",
        str(items),
        "--device",
        "cpu",
        "--out",
        str(scratch / "record.json"),
    ]
    calibrated = ["calibrate", "activations", str(damaged), str(scratch / "a.safetensors"), "--samples", "2", "--tokens", "8"]  # fmt: skip
    repaired = ["repair", str(damaged), str(whole), str(scratch / "out"), "--method", "auto", "--allow-unrelated"]
    return evaluated, evaluated, calibrated, repaired


def run(arguments: list[str], scratch: Path) -> Ended:
    """Run a command in a fork of this process, which has imported everything."""
    output = scratch / "stderr"
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        _become(arguments, output)
    while True:
        ended, status, used = os.wait4(child, os.WNOHANG)
        if ended:
            break
        if time.monotonic() - started > 10 * SECONDS:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.01)
    code = os.waitstatus_to_exitcode(status)
    return Ended(code, output.read_text(errors="replace"), used.ru_utime + used.ru_stime, used.ru_maxrss)


def _become(arguments: list[str], output: Path) -> NoReturn:
    def open_streams() -> None:
        with output.open("wb", buffering=0) as opened:
            os.dup2(opened.fileno(), 2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))

    become_command_line(arguments, open_streams, lambda: sys.excepthook(*sys.exc_info()))


def fault_of(ended: Ended, honest: int) -> str:
    """What was lost, or "". `honest` is the peak memory of the command on an undamaged model, in KiB."""
    if "Traceback" in ended.errors or ended.code == FAILED:
        return f"a traceback: {ended.errors.strip().splitlines()[-1:]}"
    if ended.code not in (0, 1, 2):
        return f"exit code {ended.code} after {ended.seconds:.0f} s: {ended.errors[-200:]!r}"
    if ended.code and not (ended.errors.startswith("deltamend: ") and ended.errors[:-1].isprintable()):
        return f"not one printable line: {ended.errors[:300]!r}"
    if ended.memory > 2 * honest:
        return f"{ended.memory >> 10} MiB where {honest >> 10} are enough"
    return ""


def outcomes(seeds: range, scratch: Path, tell: Callable[[int, str], None]) -> Counter[str]:
    """Run one command for each seed; `tell` is called with what was lost."""
    whole, damaged = scratch / "whole", scratch / "case" / "model"
    os.environ["DELTAMEND_CACHE"] = str(scratch / "case" / "cache")
    model(whole)
    import_all()
    honest = []
    for number in range(4):
        (scratch / "case").mkdir()
        ended = run(commands(whole, whole, scratch / "case")[number], scratch / "case")
        if ended.code:
            raise AssertionError(f"an undamaged model fails: {ended}")
        honest.append(ended.memory)
        shutil.rmtree(scratch / "case")
    found: Counter[str] = Counter()
    for seed in seeds:
        (scratch / "case").mkdir()
        shutil.copytree(whole, damaged)
        mutate(damaged, seed)
        number = seed % 4
        ended = run(commands(damaged, whole, scratch / "case")[number], scratch / "case")
        fault = fault_of(ended, honest[number])
        left = {path.name for path in (scratch / "case").iterdir()} - {"model", "stderr", "cache"}
        if not fault and ended.code and left:
            fault = f"left behind {left}"
        found["lost" if fault else "ran" if ended.code == 0 else "refused"] += 1
        if fault:
            tell(seed, fault)
        shutil.rmtree(scratch / "case")
    return found


def import_all() -> None:
    """Import what the commands import, so that a fork need not."""
    import datasets  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401

    import deltamend.cli  # noqa: F401


def main() -> int:
    """Run the seeds; print the counts and what was lost as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--first", type=int, default=0)
    given = parser.parse_args()
    lost: dict[int, str] = {}
    with tempfile.TemporaryDirectory(prefix="deltamend-models-") as scratch:
        seeds = range(given.first, given.first + given.count)
        counts = outcomes(seeds, Path(scratch), lost.__setitem__)
    sys.stdout.write(json.dumps({"outcomes": counts, "lost": lost}, indent=1) + "\n")
    return int(bool(lost))


if __name__ == "__main__":
    sys.exit(main())
