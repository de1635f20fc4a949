"""Makes the logs beside it: `python make.py` in this folder, with inspect-ai installed; a mock answers, no model."""

from __future__ import annotations

import tempfile

import inspect_ai
from inspect_ai import Epochs, Task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.log import write_eval_log
from inspect_ai.model import ModelOutput, ModelUsage, get_model
from inspect_ai.scorer import Score, Scorer, Target, match, mean, scorer
from inspect_ai.solver import TaskState, generate

SUMS = {
    "What is 2 + 3?": "5",
    "What is 4 + 4?": "8",
    "What is 9 - 1?": "8",
    "What is 7 + 6?": "13",
    "What is 3 + 8?": "11",
}
POLITE = ["Thank you.", "Here it is, with pleasure.", "No."]


def manners() -> Scorer:
    """Two numbers for one answer."""

    async def score(state: TaskState, target: Target) -> Score:  # noqa: ARG001 - inspect's signature
        answer = state.output.completion
        return Score(value={"curt": int(len(answer) < 5), "words": len(answer.split())})

    return score


def ask(name: str, samples: list[Sample], answers: list[str], scored: Scorer, epochs: int, log_format: str) -> None:
    """One log in this folder, without the transcript of how it came about."""
    outputs = [ModelOutput.from_content("mockllm/model", answer) for answer in answers]
    for output in outputs:
        output.usage = ModelUsage()  # else the mock counts tokens with a vocabulary from the network
    waiting = iter(outputs)
    model = get_model("mockllm/model", custom_outputs=lambda *_: next(waiting), memoize=False)
    task = Task(
        MemoryDataset(samples, name=name), solver=generate(), scorer=scored, name=name, epochs=Epochs(epochs), version=1
    )
    with tempfile.TemporaryDirectory() as folder:
        (log,) = inspect_ai.eval(task, model=model, log_dir=folder, display="none", max_connections=1, max_samples=1)
        log.eval.revision = None
        for sample in log.samples or []:
            sample.events = []
        write_eval_log(log, f"{name}.{log_format}")


if __name__ == "__main__":
    sums = [
        Sample(id=f"sum-{number}", input=text, target=right) for number, (text, right) in enumerate(SUMS.items(), 1)
    ]
    ask("sums", sums, ["5", "8", "8", "14", "11"], match(), 1, "eval")
    asked = [Sample(id=number, input=f"Answer: {text}") for number, text in enumerate(POLITE, 1)]
    ask(
        "manners",
        asked,
        ["Thank you.", "Here it is.", "No.", "No.", "Here.", "No."],
        scorer(metrics={"*": [mean()]})(manners)(),
        2,
        "json",
    )
