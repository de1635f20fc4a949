"""Fine-tune a base model in one regime of a study, on questions and answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from deltamend.checkpoint.hashing import hash_folder
from deltamend.machine.atomic import publish
from deltamend.recipes.regime import Regime
from deltamend.recipes.training_data import Message, TrainingExample
from deltamend.recipes.trl_training import Words, train_with_trl
from deltamend.study.questions import Question
from deltamend.study.records import FinetuneFacts


def finetune(
    base: Path,
    questions: Sequence[Question],
    regime: Regime,
    out: Path,
    *,
    seed: int,
    advance: Callable[[], None],
    adapter: Path | None = None,
) -> FinetuneFacts:
    """Fine-tune the model in `base` on the questions, and write it to `out` with its tokenizer, whole or not at all.

    Each example is one user message and the answer, by the model's own chat template; the loss is the mean cross-entropy
    over the batch's tokens of the answers, with what the template writes after them: the end of the turn. `steps` ×
    `batch` examples are drawn without replacement until the questions run out, then again in another order; `seed`
    decides which. AdamW without weight decay (β 0.9, 0.999), gradients clipped to norm 1; with a warm-up the first step
    has learning rate 0, as transformers counts. An example of more than `max_length` tokens is cut at its end; one whose
    prompt alone is as long has nothing left to learn from and is an error.

    - weights float32: fp32 weights and optimiser, computed in fp32, or with `compute: bfloat16` in bf16 autocast.
    - weights bfloat16 ("pure bf16"): weights, gradients and both moments of AdamW in bf16, with no fp32 copy: updates below
      half a unit in the last place are lost, and most entries do not change at all. With `compute: float32` only the
      arithmetic of the forward and backward pass is fp32, for processors without bf16 instructions; see `bf16_state`.
    - lora_rank: only an adapter on all linear layers but the head is trained, α = 2·rank, in fp32 by either of `weights`;
      it is merged in fp32 and the sum rounded once to `weights`. The adapter itself is written to `adapter`.

    Runs on the GPU where there is one. On the CPU the same seed, number of threads and versions give the same bytes.
    torch's and Python's global random states are set to `seed`.

    Args:
        base: folder of a causal language model with a chat template.
        questions: what to learn from; at least one.
        regime: how.
        out: the folder to write; one that is there is replaced.
        seed: of the order of the examples, and of the adapter's first weights.
        advance: called after each optimiser step.
        adapter: with `lora_rank`, the folder to write the adapter to as PEFT does; None not to keep it.

    Raises:
        DeltamendError: TRL is missing, the model cannot be loaded or has no chat template, an example's prompt is too
            long, the loss is not finite, or the GPU's memory is full.
    """
    examples = [
        TrainingExample(
            prompt=(Message(role="user", content=one.question),),
            completion=(Message(role="assistant", content=one.answer),),
        )
        for one in questions
    ]
    words = Words(f"regimes.{regime.name}", str, "leave long questions out by the target's `longest`")
    with publish(out) as part:
        facts = train_with_trl(base, examples, regime, part, seed=seed, advance=advance, words=words, adapter=adapter)
        weights = hash_folder(part).weights
    return FinetuneFacts(
        steps=facts.steps,
        seconds=facts.seconds,
        first_loss=facts.first_loss,
        last_loss=facts.last_loss,
        model_hash=weights or "",
    )
