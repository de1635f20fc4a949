"""Pure bf16 training on a processor without bf16 instructions: the state is held in bf16, the arithmetic is fp32."""

from __future__ import annotations

from typing import Any


def hold_in_bf16(model: Any, optimizer: Any) -> None:
    """Have an fp32 model's weights, gradients and both moments of AdamW hold nothing but bf16 values from now on.

    - Weights are rounded at once and after every step.
    - A gradient is rounded as it is added up, and again before the step, as clipping has scaled it.
    - The step itself is PyTorch's fused AdamW in fp32 on these values; the new weights and moments are then rounded to
      nearest even. PyTorch's fused AdamW on bf16 tensors does the same: it widens, computes, and rounds what it stores.

    So training differs from that of a bf16 model in the forward and backward pass alone, whose products are rounded to fp32
    and not to bf16.

    Args:
        model: of float32 weights, changed in place; it must have no other weights than those `optimizer` trains.
        optimizer: AdamW over them.

    Source: ours; the optimiser is that of Loshchilov & Hutter, arXiv 1711.05101.
    """
    import torch

    def round_(values: Any) -> None:
        values.copy_(values.to(torch.bfloat16))

    trained = [one for group in optimizer.param_groups for one in group["params"]]

    def before(*_: Any) -> None:
        for one in trained:
            if one.grad is not None:
                round_(one.grad)

    def after(*_: Any) -> None:
        for one in trained:
            round_(one.data)
            for name in ("exp_avg", "exp_avg_sq"):
                if name in optimizer.state[one]:
                    round_(optimizer.state[one][name])

    for one in model.parameters():
        round_(one.data)
    for one in trained:
        one.register_post_accumulate_grad_hook(lambda weight: round_(weight.grad))
    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)
