"""The plain script people write first: both models in memory, a full SVD of every delta, save.

    python -m benchmarks.speed.naive_repair BASE FINETUNED OUT

It is the baseline of whole_command.py and large_pair.py: the paper's method step by step.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from benchmarks.shared.arguments import script_parser
from deltamend.spectrum.thresholds import median_coefficient


def filter_matrix(delta: torch.Tensor) -> torch.Tensor:
    """DG-Hard by the full SVD in the dtype of `delta`, shape (m, n)."""
    left, values, right = torch.linalg.svd(delta, full_matrices=False)
    threshold = median_coefficient(min(delta.shape) / max(delta.shape)) * values.quantile(0.5)
    kept = values > threshold
    filtered: torch.Tensor = (left[:, kept] * values[kept]) @ right[kept]
    return filtered


def load_folder(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of all shards."""
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def repair_naively(base_folder: Path, finetuned_folder: Path, out: Path) -> None:
    """Repair every matrix and save one file."""
    base, finetuned = load_folder(base_folder), load_folder(finetuned_folder)
    for name, tensor in finetuned.items():
        if tensor.ndim == 2:
            delta = tensor.float() - base[name].float()
            finetuned[name] = (base[name].float() + filter_matrix(delta)).to(tensor.dtype)
    out.mkdir(parents=True, exist_ok=True)
    save_file(finetuned, out / "model.safetensors", metadata={"format": "pt"})


def main() -> None:
    """Repair the pair that is named."""
    parser = script_parser(__doc__)
    parser.add_argument("base", type=Path, help="folder of the base model")
    parser.add_argument("finetuned", type=Path, help="folder of the fine-tuned model")
    parser.add_argument("out", type=Path, help="folder to write the repaired model to")
    given = parser.parse_args()
    repair_naively(given.base, given.finetuned, given.out)


if __name__ == "__main__":
    main()
