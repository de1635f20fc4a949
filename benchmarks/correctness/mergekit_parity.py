"""Whether the methods that mergekit has too give the same weights; writes docs/methods/parity.md.

    python -m benchmarks.correctness.mergekit_parity [--mergekit PATH/TO/mergekit-yaml] [--out docs/methods/parity.md]

mergekit (LGPL-3) is called as a program on the same tiny pair and the same YAML; none of its code is used. It does not
have to be in deltamend's environment: `python -m venv mk && mk/bin/pip install mergekit`. The exit code is 1 if the
two disagree.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

import deltamend
from benchmarks.shared.arguments import script_parser
from deltamend.repairing.yaml_config import RepairConfig

State = dict[str, torch.Tensor]
SEEDS = 3
ROUNDING = 1e-5  # of the largest |Δ|: W_base + Δ* is stored in fp32, where |W| is about a hundred times |Δ|
LIMIT = 4.0  # standard deviations of a share of entries


@dataclass(frozen=True)
class Case:
    """One method in mergekit's words, and whether its mask is random."""

    merge_method: str
    parameters: dict[str, Any]
    random: bool = False


# Shares that are whole numbers of entries in every matrix: mergekit rounds them down, deltamend to the nearest.
CASES = (
    Case("task_arithmetic", {"weight": 0.63}),
    Case("ties", {"density": 0.25, "lambda": 0.9}),
    Case("breadcrumbs", {"density": 0.25, "gamma": 0.0625, "weight": 0.63}),
    Case("breadcrumbs_ties", {"density": 0.25, "gamma": 0.0625, "weight": 0.63}),
    Case("dare_linear", {"density": 0.3}, random=True),
    Case("dare_ties", {"density": 0.3}, random=True),
    Case("della_linear", {"density": 0.5, "epsilon": 0.2}, random=True),
    Case("della", {"density": 0.5, "epsilon": 0.2}, random=True),
)


@dataclass(frozen=True)
class Line:
    """One row of the table."""

    case: Case
    ours: str
    found: str
    agrees: bool


def build_pair(folder: Path) -> None:
    """A tiny Llama in fp32, and itself with a signal of rank 2 and noise added to every parameter."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=96, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, vocab_size=300
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder / "base")
    with torch.no_grad():
        for parameter in model.parameters():
            update = 1e-3 * torch.randn(parameter.shape)
            if parameter.ndim == 2:
                update += 1e-3 * torch.randn(parameter.shape[0], 2) @ torch.randn(2, parameter.shape[1])
            parameter += update
    model.save_pretrained(folder / "finetuned")


def matrices(folder: Path) -> State:
    """The matrices of a checkpoint."""
    tensors = {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
    return {name: tensor.double() for name, tensor in tensors.items() if tensor.ndim == 2}


def config_of(case: Case, folder: Path) -> dict[str, Any]:
    """The YAML both are given."""
    top = {key: value for key, value in case.parameters.items() if key == "lambda"}
    own = {"weight": 1.0} | {key: value for key, value in case.parameters.items() if key != "lambda"}
    models = [{"model": str(folder / "finetuned"), "parameters": own}]
    base = str(folder / "base")
    return {
        "merge_method": case.merge_method,
        "base_model": base,
        "models": models,
        "parameters": top,
        "dtype": "float32",
    }


def by_mergekit(mergekit: str, case: Case, folder: Path, seed: int) -> State:
    """What mergekit writes."""
    config, out = folder / "mergekit.yaml", folder / "mergekit"
    config.write_text(yaml.safe_dump(config_of(case, folder)))
    shutil.rmtree(out, ignore_errors=True)
    command = [mergekit, str(config), str(out), "--no-copy-tokenizer", "--quiet", "--random-seed", str(seed)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        sys.exit(f"mergekit failed on {case.merge_method}:\n{done.stderr[-2000:]}")
    return matrices(out)


def by_deltamend(case: Case, folder: Path, seed: int) -> tuple[str, State]:
    """The same YAML through deltamend, with `lambda` alone where mergekit divides `weight` out; and what it was read as."""
    content = config_of(case, folder)
    if "lambda" in content["parameters"]:
        del content["models"][0]["parameters"]["weight"]
    config = RepairConfig.model_validate(content)
    parameters = config.method_parameters | ({"seed": seed} if case.random else {})
    method = deltamend.get_method(config.method_name, parameters)
    out = folder / "deltamend"
    deltamend.repair(folder / "base", folder / "finetuned", out, method=method, out_dtype=config.dtype, overwrite=True)
    return method.described(), matrices(out)


def compare_exactly(mergekit: str, case: Case, folder: Path) -> Line:
    """Entry by entry."""
    base, finetuned = matrices(folder / "base"), matrices(folder / "finetuned")
    theirs = by_mergekit(mergekit, case, folder, 0)
    described, ours = by_deltamend(case, folder, 0)
    largest = max(float((finetuned[name] - base[name]).abs().max()) for name in base)
    difference = max(float((ours[name] - theirs[name]).abs().max()) for name in base) / largest
    masks = sum(int((((ours[name] - base[name]) == 0) != ((theirs[name] - base[name]) == 0)).sum()) for name in base)
    entries = sum(tensor.numel() for tensor in base.values())
    found = f"largest difference {difference:.0e} of the largest change; {masks} of {entries} entries kept by one only"
    return Line(case, described, found, difference < ROUNDING)


def compare_distribution(mergekit: str, case: Case, folder: Path) -> Line:
    """The share that is kept by rank of |Δ| in its row, in tenths, over several seeds; and the factor on what is kept."""
    base, finetuned = matrices(folder / "base"), matrices(folder / "finetuned")
    kept = {side: np.zeros(10) for side in ("mergekit", "deltamend")}
    sums = {side: [0.0, 0.0] for side in kept}
    counted = np.zeros(10)
    described = ""
    for seed in range(SEEDS):
        described, ours = by_deltamend(case, folder, seed)
        for side, state in (("mergekit", by_mergekit(mergekit, case, folder, seed)), ("deltamend", ours)):
            for name in base:
                delta, result = (finetuned[name] - base[name]).numpy(), (state[name] - base[name]).numpy()
                tenth = np.abs(delta).argsort(axis=1).argsort(axis=1) * 10 // delta.shape[1]
                kept[side] += np.bincount(tenth.ravel(), np.abs(result).ravel() > 1e-9, 10)
                counted += np.bincount(tenth.ravel(), minlength=10) / 2
                sums[side][0] += float(np.sum(result * delta))
                sums[side][1] += float(np.sum(delta * delta))
    shares = {side: kept[side] / counted for side in kept}
    share = shares["deltamend"]
    deviation = np.abs(shares["mergekit"] - share) / np.sqrt(2 * share * (1 - share) / counted)
    slopes = {side: first / second for side, (first, second) in sums.items()}
    text = (
        f"kept in the lowest, all and the highest tenth of a row: mergekit {_shares(shares['mergekit'])}, deltamend "
        f"{_shares(share)}; largest deviation of a tenth {deviation.max():.1f} standard deviations; mean factor on Δ: "
        f"mergekit {slopes['mergekit']:.3f}, deltamend {slopes['deltamend']:.3f}"
    )
    return Line(case, re.sub(r" seed=\d+", "", described), text, bool(deviation.max() < LIMIT))


def _shares(shares: np.ndarray[Any, np.dtype[np.float64]]) -> str:
    return f"{shares[0]:.3f}, {shares.mean():.3f}, {shares[-1]:.3f}"


def page(lines: list[Line], version: str) -> str:
    """The documentation page."""
    rows = [
        f"| `{line.case.merge_method}` | {_yaml(line.case.parameters)} | `{line.ours}` | {line.found} | {'yes' if line.agrees else '**no**'} |"
        for line in lines
    ]
    return "\n".join(
        [
            "# Parity with mergekit",
            "",
            f"The same tiny Llama pair (fp32, 2 layers) and the same YAML through mergekit {version} and deltamend, by",
            "",
            "    python -m benchmarks.correctness.mergekit_parity --mergekit PATH/TO/mergekit-yaml",
            "",
            "| mergekit | parameters | deltamend | what was found | agrees |",
            "|---|---|---|---|---|",
            *rows,
            "",
            f"Fixed masks are compared entry by entry, random ones by their distribution over {SEEDS} seeds. Matrices only: mergekit",
            "changes norms and biases too, which deltamend keeps as fine-tuned unless `vectors` or a rule says otherwise.",
            "",
            "What differs on purpose:",
            "",
            "- With one model mergekit divides `weight` out of `ties` and `della` (`normalize` is on by default there), so only `lambda` counts;",
            "  in deltamend `weight` and `lambda` are one number, and a config of that form with a `weight` is refused for these two.",
            "- `dare_*` and `della*` of mergekit rescale each tensor by one factor that restores the sum of |Δ|. deltamend divides each",
            "  kept entry by the probability with which it was kept, as the papers do, so the mean over masks is Δ.",
            "- Random masks are others: ours follow from the seed, the tensor's name and the position alone.",
            "- A share that is not a whole number of entries is rounded down by mergekit, to the nearest by deltamend.",
            "- Where scores are equal (bf16 checkpoints) deltamend chooses among them at random.",
            "",
        ]
    )


def _yaml(parameters: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in parameters.items())


def mergekit_version(mergekit: str) -> str:
    """Version of the mergekit that a program belongs to, from its interpreter."""
    python = Path(mergekit).resolve().parent / "python"
    code = "import importlib.metadata as m; print(m.version('mergekit'))"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "of unknown version"


def main() -> None:
    """Compare, print and write the table."""
    parser = script_parser(__doc__)
    parser.add_argument("--mergekit", default=shutil.which("mergekit-yaml"), help="the program mergekit-yaml")
    parser.add_argument("--exact", action="store_true", help="only the methods without a random mask")
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    given = parser.parse_args()
    if given.mergekit is None:
        sys.exit("mergekit-yaml is not on the PATH; install mergekit anywhere and give --mergekit")
    with tempfile.TemporaryDirectory() as folder:
        build_pair(Path(folder))
        lines = []
        for case in CASES:
            if case.random and given.exact:
                continue
            comparison = compare_distribution if case.random else compare_exactly
            lines.append(comparison(given.mergekit, case, Path(folder)))
            print("agrees  " if lines[-1].agrees else "DIFFERS ", case.merge_method, lines[-1].found, flush=True)
    if given.out is not None:
        given.out.write_text(page(lines, mergekit_version(given.mergekit)), encoding="utf-8")
    sys.exit(0 if all(line.agrees for line in lines) else 1)


if __name__ == "__main__":
    main()
