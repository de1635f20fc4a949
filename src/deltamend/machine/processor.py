"""What the processor can compute with."""

from __future__ import annotations


def computes_in_bf16() -> bool:
    """Whether the processor multiplies bf16 matrices about as fast as fp32 ones.

    Where it does not (x86 without AVX-512, most small machines), torch falls back to a loop over single numbers: 55 times
    slower than fp32, measured on an AMD EPYC with AVX2 for 512×576 by 576×1536 on one thread.

    Source: ours; the question is the one that torch asks of oneDNN before it hands a bf16 product to it.
    """
    import torch

    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):  # a torch that is built without oneDNN
        return False
