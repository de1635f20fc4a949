"""Whether weights of GPTQ and AWQ are read as the libraries that own the formats dequantise them on a CPU.

    pip download --no-deps --no-binary :all: gptqmodel==7.7.0 autoawq==0.2.9
    tar xzf gptqmodel-7.7.0.tar.gz && tar xzf autoawq-0.2.9.tar.gz
    python -m benchmarks.correctness.gptq_and_awq gptqmodel-7.7.0 autoawq-0.2.9 --out docs/measured/gptq-and-awq.md

Neither library can be installed beside the versions that deltamend is tested with: importing AutoAWQ needs transformers 4, and
GPTQModel newer versions of torch and numpy. So the functions that dequantise are taken out of their sources and run by
themselves, on random codes, zero points and scales.
"""

from __future__ import annotations

import ast
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

import deltamend
from benchmarks.shared.arguments import script_parser

INPUTS, OUTPUTS, GROUP = 256, 96, 64


def functions_of(source: Path, wanted: tuple[str, ...]) -> dict[str, Any]:
    """Run the definitions of some functions and methods of a source file, and nothing else of it."""
    tree = ast.parse(source.read_text(encoding="utf-8"))
    found = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name in wanted]
    for node in found:
        node.decorator_list = []
    constants = [
        node
        for node in tree.body
        if isinstance(node, ast.Assign) and all(getattr(target, "id", "").startswith("AWQ_") for target in node.targets)
    ]
    space: dict[str, Any] = {"torch": torch, "t": torch}
    future = ast.parse("from __future__ import annotations").body
    exec(compile(ast.Module([*future, *constants, *found], []), str(source), "exec"), space)  # noqa: S102 - named by the user
    return space


def words(random: np.random.Generator, *shape: int) -> torch.Tensor:
    """Random 32-bit words."""
    return torch.from_numpy(random.integers(-(2**31), 2**31, shape).astype(np.int32))


def stored(random: np.random.Generator, bits: int, *, awq: bool) -> dict[str, torch.Tensor]:
    """Random tensors of one module."""
    groups = INPUTS // GROUP
    scales = torch.from_numpy(random.uniform(1e-3, 1e-2, (groups, OUTPUTS)).astype(np.float16))
    zeros = words(random, groups, OUTPUTS * bits // 32)
    if awq:
        return {"qweight": words(random, INPUTS, OUTPUTS // 8), "qzeros": zeros, "scales": scales}
    order = torch.from_numpy(random.permutation(np.repeat(np.arange(groups), GROUP)).astype(np.int32))
    return {"qweight": words(random, INPUTS * bits // 32, OUTPUTS), "qzeros": zeros, "scales": scales, "g_idx": order}


def by_deltamend(tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> torch.Tensor:
    """The weight as deltamend reads it, fp32, shape (outputs, inputs)."""
    with tempfile.TemporaryDirectory() as folder:
        save_file({f"x.{name}": tensor for name, tensor in tensors.items()}, Path(folder, "model.safetensors"))
        Path(folder, "config.json").write_text(json.dumps({"quantization_config": config}))
        with deltamend.open_checkpoint(folder) as checkpoint:
            found = checkpoint.tensors["x.weight"]
            return torch.from_numpy(checkpoint.values(found, 0, found.elements)).reshape(found.shape)


def by_gptqmodel(library: Path, tensors: Mapping[str, torch.Tensor], bits: int, scales: torch.Tensor) -> torch.Tensor:
    """GPTQModel's own code; zero points as they are stored in its format `gptq_v2`."""
    names = (
        "dequantize_weight",
        "_dequantize_from_codes",
        "_init_wf_unsqueeze_buffers",
        "_torch_right_shift",
        "_torch_left_shift",
    )
    code = functions_of(library / "gptqmodel" / "nn_modules" / "qlinear" / "__init__.py", names)
    module = SimpleNamespace(
        **{**tensors, "scales": scales}, bits=bits, planar=False, pack_dtype_bits=32, pack_factor=32 // bits, maxq=2**bits - 1,
        dequant_dtype=torch.int16 if bits == 8 else torch.int8, in_features=INPUTS, enable_wf_unsqueeze=True, _buffers={},
    )  # fmt: skip
    module.register_buffer = lambda name, value, persistent: setattr(module, name, value)  # noqa: ARG005
    module._wf_device = lambda: torch.device("cpu")
    for name in ("_init_wf_unsqueeze_buffers", "_dequantize_from_codes"):
        setattr(module, name, lambda *values, name=name, **more: code[name](module, *values, **more))
    found: torch.Tensor = code["dequantize_weight"](module)
    return found.T


def by_autoawq(library: Path, tensors: Mapping[str, torch.Tensor], scales: torch.Tensor) -> torch.Tensor:
    """The weight by AutoAWQ's own code."""
    names = ("unpack_awq", "reverse_awq_order", "dequantize_gemm")
    code = functions_of(library / "awq" / "utils" / "packing_utils.py", names)
    found: torch.Tensor = code["dequantize_gemm"](tensors["qweight"], tensors["qzeros"], scales, 4, GROUP)
    return found.T


def main() -> None:
    """Compare every format and write the table."""
    parser = script_parser(__doc__)
    parser.add_argument("gptqmodel", type=Path, help="unpacked source of GPTQModel")
    parser.add_argument("autoawq", type=Path, help="unpacked source of AutoAWQ")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    random = np.random.default_rng(0)
    lines = [
        "# Weights of GPTQ and AWQ against the code of GPTQModel and AutoAWQ", "",
        f"Random codes, zero points and fp16 scales, {OUTPUTS}×{INPUTS}, groups of {GROUP}; those of GPTQ in shuffled order. The libraries' code",
        "runs once with the scales in fp32, which gives exact values, and once with the fp16 scales that are stored.", "",
        "| format | library | entries that differ in fp32 | entries that differ from ours rounded to fp16 |", "|---|---|---:|---:|",
    ]  # fmt: skip
    for bits in (2, 3, 4, 8, None):
        tensors = stored(random, bits or 4, awq=bits is None)
        method = {"quant_method": "awq", "bits": 4, "version": "gemm"}
        if bits is not None:
            method = {"quant_method": "gptq", "bits": bits, "checkpoint_format": "gptq_v2"}
        ours = by_deltamend(tensors, method)
        differing = []
        for dtype in (torch.float32, torch.float16):
            scales = tensors["scales"].to(dtype)
            theirs = (
                by_autoawq(given.autoawq, tensors, scales)
                if bits is None
                else by_gptqmodel(given.gptqmodel, tensors, bits, scales)
            )
            if theirs.dtype != dtype or theirs.shape != ours.shape:
                raise SystemExit(
                    f"{method}: {theirs.dtype} {tuple(theirs.shape)}, where {dtype} {tuple(ours.shape)} is expected"
                )
            differing.append(int((theirs != ours.to(dtype)).sum()))
        name, library = ("AWQ, 4 bits", given.autoawq) if bits is None else (f"GPTQ, {bits} bits", given.gptqmodel)
        lines.append(
            f"| {name} | {library.name} | {differing[0]} of {ours.numel()} | {differing[1]} of {ours.numel()} |"
        )
    command = f"    python -m benchmarks.correctness.gptq_and_awq {given.gptqmodel.name} {given.autoawq.name} --out docs/measured/gptq-and-awq.md"
    given.out.write_text("\n".join([*lines, "", "Written by", "", command, ""]))


if __name__ == "__main__":
    main()
