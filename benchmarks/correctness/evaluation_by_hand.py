"""The same benchmark figures computed in three ways: by `deltamend evaluate`, by lm-eval alone, and by a plain loop.

    python -m benchmarks.correctness.evaluation_by_hand MODEL DATA [--limit 40] [--dtype float32] [--record FILE]

The second way is lm-eval called directly, with task definitions of a few lines each over the JSONL files and with
lm-eval's own mean. It uses none of deltamend's readers, batches or scoring. The third way asks ARC-Challenge one
choice at a time through transformers, without lm-eval. The benchmarks are those of the suite in
docs/gallery/evaluations.

With --record, every figure of an existing record of that suite is checked, with the record's own limit and dtype. In
bf16 the log-likelihood of a choice depends a little on what else is in its batch, so that near ties may fall the other
way; in fp32 the three agree. The exit code is 1 if a figure differs in fp32, or by more than two items in bf16.
"""

from __future__ import annotations

import json
import re
import string
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.shared.arguments import script_parser
from benchmarks.shared.paths import ROOT
from deltamend.evaluation.backend import BackendOptions
from deltamend.evaluation.one_benchmark import AskOptions
from deltamend.evaluation.record import Evaluation, read_evaluation
from deltamend.evaluation.refusals import complied, refused
from deltamend.evaluation.run import run_benchmarks
from deltamend.evaluation.suite import read_suite

GALLERY = ROOT / "docs" / "gallery" / "evaluations"
CHAT = ("sums", "xstest_unsafe", "xstest_safe")
LETTERS = "{{question.strip()}}\nA. {{choices[0]}}\nB. {{choices[1]}}\nC. {{choices[2]}}\nD. {{choices[3]}}\nAnswer:"


def hellaswag_text(text: str) -> str:
    """WikiHow's "[title]" and other brackets out, as HellaSwag's authors do."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def hellaswag_question(row: dict[str, Any]) -> str:
    """The activity, the story, and the sentence to be finished, which lm-eval begins with a capital."""
    story = re.sub(r"(?s)(?<=.\. )(?!.*\. )[a-z].*(?<![.!?])$", lambda begun: begun[0].capitalize(), row["question"])
    return hellaswag_text(f"{row['activity']}: {story}")


def without_punctuation(answer: str) -> str:
    """How two answers to TriviaQA are compared."""
    return "".join(letter for letter in answer.lower() if letter not in string.punctuation)


def an_alias(row: dict[str, Any], responses: list[str]) -> dict[str, float]:
    """Whether the answer is one of TriviaQA's."""
    answer = without_punctuation(responses[0].strip())
    return {"exact_match": float(answer in map(without_punctuation, row["answers"]))}


def the_sum(row: dict[str, Any], responses: list[str]) -> dict[str, float]:
    """Whether the answer is the sum and nothing else."""
    return {"exact_match": float(responses[0].strip() == row["answer"])}


def by_hand_configs(data: Path) -> dict[str, dict[str, Any]]:
    """lm-eval configs over the raw files, with the metric's name in lm-eval's results."""

    def choice(file: str, **more: Any) -> dict[str, Any]:
        metrics = [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")]
        return {**raw(file), "output_type": "multiple_choice", "doc_to_target": "gold", "metric_list": metrics, **more}

    def raw(file: str) -> dict[str, Any]:
        (path,) = [*data.glob(f"**/{file}"), *GALLERY.glob(file)]
        files = {"data_files": {"test": str(path)}}
        return {"dataset_path": "json", "dataset_kwargs": files, "test_split": "test", "num_fewshot": 0}

    def answer(file: str, text: str, scored: Any, metric: str, tokens: int, *until: str) -> dict[str, Any]:
        return {
            **raw(file),
            "output_type": "generate_until",
            "doc_to_text": text,
            "doc_to_target": 0,
            "generation_kwargs": {"until": list(until), "do_sample": False, "max_gen_toks": tokens},
            "process_results": scored,
            "metric_list": [{"metric": metric, "aggregation": "mean", "higher_is_better": True}],
        }

    def half(label: str, scored: Any) -> dict[str, Any]:
        of_label = {"process_docs": lambda rows: rows.filter(lambda row: row["label"] == label)}
        return answer("xstest.jsonl", "prompt", scored, scored.__name__, 32) | of_label

    return {
        "sums": answer("target.jsonl", "question", the_sum, "exact_match", 12, "\n"),
        "arc_challenge": choice(
            "arc_challenge.jsonl", doc_to_text="Question: {{question}}\nAnswer:", doc_to_choice="choices"
        ),
        "mmlu": choice(
            "mmlu.jsonl",
            doc_to_text=LETTERS,
            doc_to_choice=["A", "B", "C", "D"],
            description="The following are multiple choice questions (with answers) about {{subject.replace('_', ' ')}}.\n\n",
        ),
        "mnli": choice(
            "mnli.jsonl",
            doc_to_text="{{premise}}\nQuestion: {{hypothesis.strip()}}{{'' if hypothesis.strip().endswith('.') else '.'}} True, False or Neither?\nAnswer:",
            doc_to_choice=["True", "Neither", "False"],
        ),
        "hellaswag": choice(
            "hellaswag.jsonl",
            doc_to_text=hellaswag_question,
            doc_to_choice=lambda row: [hellaswag_text(ending) for ending in row["choices"]],
        ),
        "triviaqa": answer(
            "triviaqa.jsonl", "Question: {{question}}?\nAnswer:", an_alias, "exact_match", 16, "\n", ".", ","
        ),
        "xstest_unsafe": half("unsafe", refused),
        "xstest_safe": half("safe", complied),
    }


def chosen(total: int, limit: int | None) -> list[int]:
    """Positions that a limit leaves: evenly spread."""
    asked = total if limit is None else min(limit, total)
    return [index * total // asked for index in range(asked)]


def by_hand(model: Path, data: Path, limit: int | None, dtype: str) -> dict[str, dict[str, Any]]:
    """lm-eval's own results for each task."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    lm = HFLM(pretrained=str(model.absolute()), device="cpu", dtype=dtype, batch_size=8, softmax_dtype="float32")
    manager = TaskManager(include_defaults=False)
    found = {}
    for name, config in by_hand_configs(data).items():
        task = manager.load([{"task": name, **config}])["tasks"][name]
        results = simple_evaluate(
            lm,
            tasks=[task],
            samples={name: chosen(len(task.eval_docs), limit)},
            apply_chat_template=name in CHAT,
            bootstrap_iters=0,
            random_seed=0,
            numpy_random_seed=0,
            torch_random_seed=0,
            fewshot_random_seed=0,
            task_manager=manager,
        )
        found[name] = results["results"][name]
    return found


def plain_loop(model: Path, data: Path, limit: int | None, dtype: str) -> list[tuple[list[float], float]]:
    """ARC-Challenge without lm-eval: log-likelihoods of the choices, and whether the best a character is right."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()
    (path,) = data.glob("**/arc_challenge.jsonl")
    items = [json.loads(line) for line in path.read_text(encoding="utf-8").rstrip().split("\n")]
    found = []
    for index in chosen(len(items), limit):
        item = items[index]
        context = f"Question: {item['question']}\nAnswer:"
        start = len(tokenizer(context).input_ids)
        likelihoods = []
        for choice in item["choices"]:
            tokens = tokenizer(f"{context} {choice}", return_tensors="pt").input_ids
            with torch.no_grad():
                log_probs = torch.log_softmax(loaded(tokens).logits[0, :-1].float(), dim=-1)
            likelihoods.append(float(log_probs[start - 1 :].gather(1, tokens[0, start:, None]).sum()))
        a_character = [value / len(choice) for value, choice in zip(likelihoods, item["choices"], strict=True)]
        found.append((likelihoods, float(a_character.index(max(a_character)) == item["gold"])))
    return found


def evaluated(model: Path, data: Path, limit: int | None, dtype: str) -> Evaluation:
    """What `deltamend evaluate` makes of the same tasks."""
    with tempfile.TemporaryDirectory() as folder:
        return run_benchmarks(
            str(model),
            [read_suite(f"{GALLERY / 'suite.yaml'}:{data}")],
            Path(folder) / "out.json",
            backend=BackendOptions(device="cpu", dtype=dtype),
            asking=AskOptions(limit=limit),
        ).evaluation


def main() -> None:
    """Run the three roads and print them side by side."""
    parser = script_parser(__doc__)
    parser.add_argument("model", type=Path, help="folder of the model")
    parser.add_argument("data", type=Path, help="folder of the benchmarks' JSONL files")
    parser.add_argument("--limit", type=int, default=40, help="number of items of each benchmark")
    parser.add_argument("--dtype", default="float32", help="dtype of the weights")
    parser.add_argument("--record", type=Path, help="record of `deltamend evaluate` to check")
    given = parser.parse_args()
    record = None if given.record is None else read_evaluation(given.record)
    dtype, limit = (given.dtype, given.limit) if record is None else (record.settings["dtype"], record.limit)
    record = record or evaluated(given.model, given.data, limit, dtype)
    hand, loop = by_hand(given.model, given.data, limit, dtype), plain_loop(given.model, given.data, limit, dtype)
    differ = 0
    print(f"{given.model.name}, {dtype}, limit {limit}")
    print(f"{'benchmark':16}{'metric':12}{'items':>6}{'evaluate':>10}{'by hand':>10}")
    for name, scores in record.tasks.items():
        figure = hand[name][f"{scores.metric},none"]
        off = abs(scores.mean - figure) * len(scores.items)
        differ += off > (2 if dtype != "float32" else 0) + 1e-9
        print(f"{name:16}{scores.metric:12}{len(scores.items):6}{scores.mean:10.4f}{figure:10.4f}")
    items = record.tasks["arc_challenge"].items
    furthest = max(
        abs(one - other)
        for item, (likelihoods, _) in zip(items, loop, strict=True)
        for one, other in zip(item.loglikelihoods, likelihoods, strict=True)
    )
    agree = sum(item.score == right for item, (_, right) in zip(items, loop, strict=True))
    print(
        f"arc_challenge by a plain loop: {agree} of {len(items)} items score the same, log-likelihoods differ by {furthest:.2g} at most"
    )
    sys.exit(differ > 0 or (dtype == "float32" and agree < len(items)))


if __name__ == "__main__":
    main()
