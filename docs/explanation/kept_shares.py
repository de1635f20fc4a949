"""The figure of what-auto-keeps.md: the share of an update that four methods keep, by what the base uses and what the update does.

python docs/explanation/kept_shares.py docs/explanation/kept-shares.svg
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from safetensors.torch import save_file

mpl.use("svg")

from matplotlib import pyplot as plt

import deltamend
from deltamend.calibration.activations import described
from deltamend.methods.input_moments import EIGENVALUES

STEPS = 24
"""Sizes on each axis; the made-up matrix has a direction for each pair of them."""
NAME = "layers.0.weight"


def kept_shares(method: str, **parameters: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    """What a method keeps of each direction of one matrix, whose update and inputs have the same directions.

    Args:
        method: name of the method.
        parameters: of it.

    Returns:
        (STEPS, STEPS) shares: the update grows from the first row to the last, what the base uses from the first column to
        the last, both a hundredfold (of the squares: ten thousandfold).
    """
    update, use = np.meshgrid(np.geomspace(0.1, 10, STEPS), np.geomspace(0.01, 100, STEPS), indexing="ij")
    delta = torch.diag(torch.from_numpy(update.ravel()))
    with tempfile.TemporaryDirectory() as folder:
        if method in ("null-space", "two-sided"):
            file = Path(folder, "inputs.safetensors")
            order = np.argsort(-use.ravel(), kind="stable")
            vectors, values = np.eye(len(order), dtype=np.float32)[order], use.ravel()[order].astype(np.float32)
            tensors = {NAME: torch.from_numpy(vectors), f"{NAME}{EIGENVALUES}": torch.from_numpy(values)}
            save_file(tensors, file, metadata=described({}, tensors))
            parameters = {**parameters, "activations": file}
        repaired = deltamend.repair_state_dict(
            {NAME: torch.zeros_like(delta)}, {NAME: delta}, method=method, parameters=parameters
        )
    return np.diag(repaired.tensors[NAME].numpy()).reshape(STEPS, STEPS) / update


def draw(path: Path) -> None:
    """Write the figure."""
    mpl.rcParams.update({"svg.hashsalt": "deltamend", "font.size": 10})
    panels = {
        "WiSE-FT 0.5": kept_shares("wise-ft", alpha=0.5),
        "DG-Hard": kept_shares("dg-hard"),
        "null-space": kept_shares("null-space", ridge=1.0),
        "two-sided": kept_shares("two-sided"),
    }
    figure, axes = plt.subplots(1, len(panels), figsize=(9.6, 3.0), layout="constrained", sharey=True)
    for place, (name, shares) in zip(axes, panels.items(), strict=True):
        image = place.imshow(shares, origin="lower", cmap="viridis", vmin=0, vmax=1, aspect="auto")
        place.set_title(name)
        place.set_xticks([0, STEPS - 1], ["little", "much"])
        place.set_yticks([0, STEPS - 1], ["little", "much"])
        place.set_xlabel("use by the base")
    axes[0].set_ylabel("size of the update")
    figure.colorbar(image, ax=axes, label="share that is kept", ticks=[0, 0.5, 1])
    figure.savefig(path, metadata={"Date": None, "Creator": None}, facecolor="white")


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
