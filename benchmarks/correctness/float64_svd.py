"""Does `deltamend.json` agree with a plain float64 SVD: rank, threshold, norm, and Δ* before the cast.

    python -m benchmarks.correctness.float64_svd BASE FINETUNED [--every N]

The pair goes through `deltamend repair` with dg-hard. The reference shares no code with deltamend: it
reads with safetensors, and takes ω(β) from tests/reference.py. Exits 1 when a matrix disagrees.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from benchmarks.shared.measure import DELTAMEND, machine, run
from deltamend.spectrum.filter import filter_delta
from deltamend.spectrum.thresholds import GavishDonoho
from tests.reference import Array, threshold_factor

TOLERANCE = 1e-5


def main() -> int:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("base", type=Path)
    parser.add_argument("finetuned", type=Path)
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
