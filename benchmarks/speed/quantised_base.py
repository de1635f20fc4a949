"""What a quantised BASE costs: time and memory of `deltamend repair` beside those with the same BASE in bf16.

    python -m benchmarks.speed.quantised_base [--layers 6] [--scratch DIR]

The pair has about 100M parameters and is generated and removed again. BASE is stored in bf16, in nf4 as bitsandbytes stores it,
and in 4 bits as GPTQ does; all three runs take turns on one machine. The goals are a ratio of at most 1.5, and a peak that
does not grow with the number of layers.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from benchmarks.correctness.rounding_floors import NF4
from benchmarks.shared.arguments import script_parser
from benchmarks.shared.made_up_checkpoint import ModelShape, write_checkpoint
from benchmarks.shared.measure import DELTAMEND, Usage, apart, machine, run

Tensors = dict[str, torch.Tensor]
_GROUP = 128


def nf4(name: str, weight: torch.Tensor) -> Tensors:
    """A weight as bitsandbytes stores it in nf4, blocks of 64."""
    blocks = weight.float().numpy().reshape(-1, 64)
    absmax = np.abs(blocks).max(axis=1)
    middles = ((NF4[1:] + NF4[:-1]) / 2).astype(np.float32)
    codes = np.searchsorted(middles, blocks / absmax[:, None]).astype(np.uint8).reshape(-1, 2)
    state = json.dumps({"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": list(weight.shape)})
    return {
        f"{name}.weight": torch.from_numpy(codes[:, :1] << 4 | codes[:, 1:]),
        f"{name}.weight.absmax": torch.from_numpy(absmax),
        f"{name}.weight.quant_map": torch.from_numpy(NF4.astype(np.float32)),
        f"{name}.weight.quant_state.bitsandbytes__nf4": torch.tensor(list(state.encode()), dtype=torch.uint8),
    }


def gptq(name: str, weight: torch.Tensor) -> Tensors:
    """A weight as GPTQ stores it in 4 bits, groups of 128, symmetric; rounded to nearest."""
    groups = weight.float().numpy().reshape(weight.shape[0], -1, _GROUP)
    scales = (np.abs(groups).max(axis=2) / 7.5).astype(np.float16)
    codes = np.clip(np.round(groups / scales[:, :, None].astype(np.float32)) + 8, 0, 15).astype(np.uint32)
    rows = codes.reshape(weight.shape[0], -1, 8)
    packed = np.zeros(rows.shape[:2], np.uint32)
    for place in range(8):
        packed |= rows[:, :, place] << np.uint32(4 * place)
    zeros = np.full((scales.shape[1], weight.shape[0] // 8), 0x77777777, np.uint32)  # 8, less one
    return {
        f"{name}.qweight": torch.from_numpy(packed.view(np.int32).T.copy()),
        f"{name}.qzeros": torch.from_numpy(zeros.view(np.int32)),
        f"{name}.scales": torch.from_numpy(scales.T.copy()),
        f"{name}.g_idx": torch.arange(weight.shape[1], dtype=torch.int32) // _GROUP,
    }


def write_quantised(
    base: Path, out: Path, pack: Callable[[str, torch.Tensor], Tensors], config: dict[str, Any]
) -> None:
    """The checkpoint with every matrix but the embedding quantised."""
    out.mkdir()
    weight_map: dict[str, str] = {}
    for path in sorted(base.glob("*.safetensors")):
        stored: Tensors = {}
        for name, tensor in load_file(path).items():
            stored |= pack(name.removesuffix(".weight"), tensor) if "proj" in name else {name: tensor}
        save_file(stored, out / path.name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(stored, path.name)
    said = json.loads((base / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**said, "quantization_config": config}))
    (out / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


FORMATS: dict[str, tuple[Callable[[str, torch.Tensor], Tensors], dict[str, Any]]] = {
    "nf4": (nf4, {"quant_method": "bitsandbytes", "load_in_4bit": True}),
    "GPTQ": (gptq, {"quant_method": "gptq", "bits": 4, "group_size": _GROUP}),
}


def measured(shape: ModelShape, scratch: Path) -> dict[str, Usage]:
    """Each form of BASE, repaired against once."""
    base, finetuned, out = scratch / "base", scratch / "finetuned", scratch / "out"
    apart(write_checkpoint, base, shape, 0)
    apart(write_checkpoint, finetuned, shape, 1, base)
    bases = {"bf16": base}
    for name, (pack, config) in FORMATS.items():
        bases[name] = scratch / name
        apart(write_quantised, base, bases[name], pack, config)
    usages = {}
    for name, folder in bases.items():
        usages[name] = run((*DELTAMEND, "repair", "--quiet", folder, finetuned, out))
        shutil.rmtree(out)
    return usages


def main() -> None:
    """Print a table."""
    parser = script_parser(__doc__)
    parser.add_argument(
        "--layers", type=int, default=6, help="layers of the larger pair; the smaller one has half as many"
    )
    parser.add_argument("--scratch", type=Path, default=None, help="where to make the pairs; removed afterwards")
    arguments = parser.parse_args()
    print("# What a quantised BASE costs\n\n    python -m benchmarks.speed.quantised_base\n")
    print(f"One run of `deltamend repair` each; FINETUNED is in bf16.\n\n{machine()}\n")
    print(
        "| BASE | layers | parameters | wall, s | processor, s | beside bf16 | peak, MiB |\n|---|---|---|---|---|---|---|"
    )
    for layers in (arguments.layers // 2, arguments.layers):
        shape = ModelShape(layers=layers, hidden=1024, intermediate=4096, key_value=256, vocabulary=8192)
        parameters = sum(m * n for _, (m, n) in shape.matrices()) / 1e6
        with tempfile.TemporaryDirectory(prefix="deltamend-bench-", dir=arguments.scratch) as scratch:
            usages = measured(shape, Path(scratch))
        for name, usage in usages.items():
            ratio = usage.cpu / usages["bf16"].cpu
            print(
                f"| {name} | {layers} | {parameters:.0f}M | {usage.wall:.1f} | {usage.cpu:.1f} | {ratio:.2f} | {usage.peak / 2**20:.0f} |"
            )


if __name__ == "__main__":
    main()
