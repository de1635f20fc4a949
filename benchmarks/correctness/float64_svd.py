"""Whether rank, threshold and filtered update of `deltamend repair` agree with a plain float64 SVD.

    python -m benchmarks.correctness.float64_svd BASE FINETUNED [--every N]

The pair goes through `deltamend repair` with DG-Hard, and rank and threshold are read from its deltamend.json. The
reference shares no code with deltamend: it reads the tensors with safetensors, and the threshold's factor ω(β) comes
from tests/reference.py. The filtered update Δ* is compared before it is rounded. The exit code is 1 if a matrix
disagrees.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from benchmarks.shared.arguments import script_parser
from benchmarks.shared.measure import DELTAMEND, machine, run
from deltamend.spectrum.filter import filter_delta
from deltamend.spectrum.thresholds import GavishDonoho
from tests.reference import Array, threshold_factor

TOLERANCE = 1e-5


def main() -> int:
    """Print a table."""
    parser = script_parser(__doc__)
    parser.add_argument("base", type=Path, help="folder of the base model")
    parser.add_argument("finetuned", type=Path, help="folder of the fine-tuned model")
    parser.add_argument("--every", type=int, default=10, help="compare every N-th matrix")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="deltamend-bench-", dir=arguments.finetuned.parent) as scratch:
        run((*DELTAMEND, "repair", "--quiet", arguments.base, arguments.finetuned, f"{scratch}/out"))
        manifest = json.loads((Path(scratch) / "out" / "deltamend.json").read_text())
    print(f"{machine()}\n")
    filtered = [
        tensor for tensor in manifest["tensors"] if tensor["action"] == "filter" and tensor["outcome"] != "zero"
    ]
    print(
        "| matrix | shape | rank, float64 | threshold, relative difference | ‖difference‖/‖Δ*‖ |\n|---|---|---|---|---|"
    )
    worst = 0.0
    for record in filtered[:: arguments.every]:
        delta = read(arguments.finetuned, record["name"]) - read(arguments.base, record["name"])
        left, values, right = np.linalg.svd(delta, full_matrices=False)
        threshold = threshold_factor(min(delta.shape) / max(delta.shape)) * float(np.median(values))
        rank = int((values > threshold).sum())
        reference = (left[:, :rank] * values[:rank]) @ right[:rank]
        kept = np.asarray(filter_delta(delta.astype(np.float32), GavishDonoho()).dense(delta.astype(np.float32)))
        difference = float(np.linalg.norm(kept - reference) / np.linalg.norm(reference))
        stated = record["spectrum"]
        off = abs(stated["threshold"] / threshold - 1)
        worst = max(worst, difference, off, 0.0 if stated["rank"] == rank else 1.0)
        shape = "×".join(map(str, delta.shape))
        print(f"| {record['name']} | {shape} | {stated['rank']}, {rank} | {off:.1e} | {difference:.1e} |")
    print(f"\nworst {worst:.1e}, tolerance {TOLERANCE:.0e}")
    return int(worst > TOLERANCE)


def read(folder: Path, name: str) -> Array:
    """One tensor in float64, by safetensors' own reader."""
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            if name in opened.keys():  # noqa: SIM118 - not a dict
                tensor: torch.Tensor = opened.get_tensor(name)
                return tensor.double().numpy()
    raise SystemExit(f"{folder}: no tensor {name}")


if __name__ == "__main__":
    sys.exit(main())
