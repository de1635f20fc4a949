"""Write a checkpoint's linear weights in each quantised format, in plain loops, and say which values they stand for.

Nothing here is shared with the readers: codes are packed and multiplied one at a time, from the formats' public descriptions.
The libraries that own the formats are compared with in the tests of each format.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]
Integers = np.ndarray[Any, np.dtype[np.int64]]
Halves = np.ndarray[Any, np.dtype[np.float16]]
Floats = np.ndarray[Any, np.dtype[Any]]

NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip
"""bitsandbytes' table, `get_4bit_type("nf4")`; QLoRA, appendix E."""
E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


class Written(NamedTuple):
    """A quantised weight: what is stored beside its module, by the last part of the name, and the values it stands for."""

    stored: Tensors
    values: torch.Tensor


class Format(NamedTuple):
    """How a checkpoint is written in a format, and what config.json then says."""

    write: Callable[[torch.Tensor], Written]
    config: Mapping[str, Any]
    packing: str


def words(codes: list[list[int]], bits: int) -> torch.Tensor:
    """Pack each row of codes into 32-bit words without gaps, the first in the lowest bits."""
    packed = []
    for row in codes:
        whole = sum(code << (bits * place) for place, code in enumerate(row))
        count = -(-len(row) * bits // 32)
        packed.append([(whole >> (32 * number)) & 0xFFFFFFFF for number in range(count)])
    return torch.from_numpy(np.array(packed, np.uint32).view(np.int32))


def nf4(weight: torch.Tensor, *, block: int = 64, shape: tuple[int, ...] | None = None) -> Written:
    flat = weight.float().flatten().tolist()
    absmax, values, codes, table = [], [], [], np.array(NF4)
    for start in range(0, len(flat), block):
        part = flat[start : start + block]
        largest = np.float32(max(map(abs, part)))
        absmax.append(largest)
        for entry in part:
            code = int(np.argmin(np.abs(table - entry / float(largest))))
            codes.append(code)
            values.append(np.float32(NF4[code]) * largest)
    packed = [16 * first + second for first, second in zip(codes[::2], codes[1::2], strict=True)]
    state = {"quant_type": "nf4", "blocksize": block, "dtype": "bfloat16", "shape": list(shape or weight.shape)}
    stored = {
        "weight": torch.tensor(packed, dtype=torch.uint8)[:, None],
        "weight.absmax": torch.from_numpy(np.array(absmax)),
        "weight.quant_map": torch.tensor(NF4),
        "weight.quant_state.bitsandbytes__nf4": torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8),
    }
    return Written(stored, torch.from_numpy(np.array(values)).reshape(weight.shape))


def int8_rows(weight: torch.Tensor) -> Written:
    """LLM.int8."""
    largest = weight.float().abs().amax(dim=1)
    codes = torch.round(weight.float() * (127 / largest[:, None])).to(torch.int8)
    values = codes.float() * largest[:, None] * torch.tensor(7.874015718698502e-3)
    stored = {"weight": codes, "SCB": largest, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    return Written(stored, values)


def _affine(
    weight: torch.Tensor, bits: int, groups: list[list[int]], *, symmetric: bool = False
) -> tuple[Integers, Integers, Halves]:
    """Codes (rows, columns), zero points and fp16 scales (rows, groups); the zero points are the middle, or anywhere."""
    rows = weight.shape[0]
    top = 2**bits - 1
    codes = np.zeros(weight.shape, np.int64)
    zeros, scales = np.zeros((rows, len(groups)), np.int64), np.zeros((rows, len(groups)), np.float16)
    dense = weight.float().numpy()
    for row in range(rows):
        for group, columns in enumerate(groups):
            part = dense[row, columns]
            low, high = min(part.min(), 0.0), max(part.max(), 0.0)
            if symmetric:
                low, high = -max(-low, high), max(-low, high)
            scale = np.float16(max((high - low) / top, 1e-4))
            # 1 to 2^bits − 1: AutoGPTQ cannot store a zero point of 0.
            zeros[row, group] = zero = int(np.clip(round(-low / float(scale)), 1, top))
            if symmetric:
                zeros[row, group] = zero = 2 ** (bits - 1)
            scales[row, group] = scale
            codes[row, columns] = np.clip(np.round(part / float(scale)) + zero, 0, top)
    return codes, zeros, scales


def _meant(codes: Integers, zeros: Integers, scales: Floats, groups: list[list[int]]) -> torch.Tensor:
    values = np.zeros(codes.shape, np.float32)
    for group, columns in enumerate(groups):
        values[:, columns] = (codes[:, columns] - zeros[:, [group]]).astype(np.float32) * scales[:, [group]].astype(
            np.float32
        )
    return torch.from_numpy(values)


def consecutive(columns: int, size: int) -> list[list[int]]:
    return [list(range(start, start + size)) for start in range(0, columns, size)]


def gptq(weight: torch.Tensor, *, bits: int = 4, size: int = 32, less: int = 1, shuffled: bool = False) -> Written:
    groups = consecutive(weight.shape[1], size)
    if shuffled:
        order = np.random.default_rng(0).permutation(weight.shape[1]).tolist()
        groups = [sorted(order[start : start + size]) for start in range(0, len(order), size)]
    codes, zeros, scales = _affine(weight, bits, groups)
    group_of = [
        next(number for number, group in enumerate(groups) if column in group) for column in range(weight.shape[1])
    ]
    stored = {
        "qweight": words(codes.tolist(), bits).T.contiguous(),
        "qzeros": words((zeros - less).T.tolist(), bits),
        "scales": torch.from_numpy(scales.T.copy()),
        "g_idx": torch.tensor(group_of, dtype=torch.int32),
    }
    return Written(stored, _meant(codes, zeros, scales, groups))


def awq(weight: torch.Tensor, *, size: int = 32) -> Written:
    groups = consecutive(weight.shape[1], size)
    codes, zeros, scales = _affine(weight, 4, groups)

    def packed(outputs_last: Integers) -> torch.Tensor:
        lines = outputs_last.tolist()
        return words([[line[at + place] for at in range(0, len(line), 8) for place in AWQ_ORDER] for line in lines], 4)

    stored = {"qweight": packed(codes.T), "qzeros": packed(zeros.T), "scales": torch.from_numpy(scales.T.copy())}
    return Written(stored, _meant(codes, zeros, scales, groups))


def packed_int4(weight: torch.Tensor, *, size: int = 32, symmetric: bool = True) -> Written:
    """compressed-tensors' pack-quantized, with scales in bf16."""
    groups = consecutive(weight.shape[1], size)
    codes, zeros, scales = _affine(weight, 4, groups, symmetric=symmetric)
    rounded = torch.from_numpy(scales).to(torch.bfloat16)
    stored = {
        "weight_packed": words(codes.tolist(), 4),
        "weight_scale": rounded,
        "weight_shape": torch.tensor(weight.shape),
    }
    if not symmetric:
        stored["weight_zero_point"] = words(zeros.T.tolist(), 4).T.contiguous()
    return Written(stored, _meant(codes, zeros, rounded.float().numpy(), groups))


def int8_channel(weight: torch.Tensor) -> Written:
    """compressed-tensors' int-quantized, one scale a row, with zero points."""
    scale = (weight.float().abs().amax(dim=1, keepdim=True) / 100).to(torch.bfloat16)
    zero = torch.full(scale.shape, 3, dtype=torch.int8)
    codes = torch.clamp(torch.round(weight.float() / scale.float()) + 3, -128, 127).to(torch.int8)
    stored = {"weight": codes, "weight_scale": scale, "weight_zero_point": zero}
    return Written(stored, (codes.float() - 3) * scale.float())


def _fp4_code(value: float) -> int:
    nearest = np.argmin(np.abs(np.array(E2M1) - abs(value)))
    return int(nearest) + 8 * (value < 0)


def _fp4(weight: torch.Tensor, scales: Floats, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Packed codes, and the values they stand for, with an fp32 scale for each block."""
    rows, columns = weight.shape
    packed, values = np.zeros((rows, columns // 2), np.uint8), np.zeros((rows, columns), np.float32)
    for row, line in enumerate(weight.float().tolist()):
        for column, entry in enumerate(line):
            scale = scales[row, column // block]
            code = _fp4_code(entry / float(scale))
            packed[row, column // 2] |= code << (4 * (column % 2))
            values[row, column] = np.float32(E2M1[code % 8] * (-1 if code > 7 else 1)) * scale
    return torch.from_numpy(packed), torch.from_numpy(values)


def nvfp4(weight: torch.Tensor) -> Written:
    largest = weight.float().abs().reshape(weight.shape[0], -1, 16).amax(dim=2)
    whole = torch.tensor([448 * 6 / float(weight.abs().max())])
    scale = (largest / 6 * whole).to(torch.float8_e4m3fn)
    packed, values = _fp4(weight, np.maximum((scale.float() / whole).numpy(), np.float32(1e-9)), 16)
    return Written({"weight_packed": packed, "weight_scale": scale, "weight_global_scale": whole}, values)


def mxfp4(weight: torch.Tensor) -> Written:
    largest = weight.float().abs().reshape(weight.shape[0], -1, 32).amax(dim=2)
    exponent = torch.floor(torch.log2(largest.clamp(min=1e-30))) - 2
    packed, values = _fp4(weight, torch.exp2(exponent).numpy(), 32)
    return Written({"weight_packed": packed, "weight_scale": (exponent + 127).to(torch.uint8)}, values)


def _compressed(weights: Mapping[str, Any], layout: str) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights}
    return {"quant_method": "compressed-tensors", "format": layout, "config_groups": {"group_0": group}}


FORMATS: dict[str, Format] = {
    "nf4": Format(nf4, {"quant_method": "bitsandbytes", "load_in_4bit": True}, "nf4"),
    "llm-int8": Format(int8_rows, {"quant_method": "bitsandbytes", "load_in_8bit": True}, "int8"),
    "gptq": Format(gptq, {"quant_method": "gptq", "bits": 4, "group_size": 32}, "int4"),
    "gptq-v2-sorted": Format(
        lambda weight: gptq(weight, less=0, shuffled=True),
        {"quant_method": "gptq", "bits": 4, "desc_act": True, "checkpoint_format": "gptq_v2"},
        "int4",
    ),
    "gptq-3-bit": Format(lambda weight: gptq(weight, bits=3), {"quant_method": "gptq", "bits": 3}, "int3"),
    "gptq-8-bit": Format(lambda weight: gptq(weight, bits=8), {"quant_method": "gptq", "bits": 8}, "int8"),
    "awq": Format(awq, {"quant_method": "awq", "bits": 4, "version": "gemm"}, "int4"),
    "pack-quantized": Format(
        packed_int4, _compressed({"num_bits": 4, "type": "int", "group_size": 32}, "pack-quantized"), "int4"
    ),
    "pack-quantized-asymmetric": Format(
        lambda weight: packed_int4(weight, symmetric=False),
        _compressed({"num_bits": 4, "type": "int", "group_size": 32, "symmetric": False}, "pack-quantized"),
        "int4",
    ),
    "int-quantized": Format(
        int8_channel, _compressed({"num_bits": 8, "type": "int", "strategy": "channel"}, "int-quantized"), "int8"
    ),
    "nvfp4": Format(nvfp4, _compressed({"num_bits": 4, "type": "float", "group_size": 16}, "nvfp4-pack-quantized"), "NVFP4"),
    "mxfp4": Format(mxfp4, _compressed({"num_bits": 4, "type": "float", "group_size": 32}, "mxfp4-pack-quantized"), "MXFP4"),
}  # fmt: skip


_KEPT: dict[tuple[str, bytes], Written] = {}
"""What was written before, as most tests quantise the same small model in plain loops."""


def _written(form: Format, weight: torch.Tensor) -> Written:
    key = (repr(form), weight.float().numpy().tobytes())
    if key not in _KEPT:
        _KEPT[key] = form.write(weight)
    return _KEPT[key]


def write_quantised(folder: Path, form: Format) -> Tensors:
    """Quantise the projections of a checkpoint folder, in place; the values that its tensors then stand for."""
    path = folder / "model.safetensors"
    stored: Tensors = {}
    values: Tensors = {}
    for name, tensor in load_file(path).items():
        if "proj" not in name:
            stored[name] = values[name] = tensor
            continue
        written = _written(form, tensor)
        values[name] = written.values
        stored |= {f"{name.removesuffix('weight')}{leaf}": part for leaf, part in written.stored.items()}
    save_file(stored, path, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": form.config}))
    return values
