"""Heads that an adapter brings and its model lacks, such as that of a reward model trained on a causal one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from deltamend.checkpoint.architecture import OUTPUT_EMBEDDING, architecture_of, leaf_of, module_of

# PEFT's name of a task, and what transformers calls the classes for it.
_CLASSES = {
    "SEQ_CLS": "ForSequenceClassification",
    "TOKEN_CLS": "ForTokenClassification",
    "QUESTION_ANS": "ForQuestionAnswering",
}
_CLASS = re.compile(r"(For[A-Z]\w*|LMHeadModel|Model)$")


def is_new_head(adapter: Mapping[str, Any], name: str) -> bool:
    """Whether a parameter belongs to the head that an adapter's task has, by its adapter_config.json."""
    saved = adapter.get("modules_to_save")
    module = module_of(name)
    listed = isinstance(saved, list) and (module in saved or leaf_of(module) in saved)
    return listed and str(adapter.get("task_type")) in _CLASSES


def config_with_head(config: Mapping[str, Any], adapter: Mapping[str, Any], labels: int) -> dict[str, Any]:
    """The config of the model with the head of the adapter's task.

    Args:
        config: of the model.
        adapter: adapter_config.json.
        labels: how many labels the head tells apart.
    """
    found = architecture_of(config)
    wanted = _CLASSES[adapter["task_type"]]
    with_labels = {key: value for key, value in config.items() if key not in ("id2label", "label2id")}
    return {**with_labels, "architectures": [_CLASS.sub("", found) + wanted], "num_labels": labels}


def is_other_head(name: str) -> bool:
    """Whether a parameter belongs to a head that predicts tokens, which a model with another head does not have."""
    return OUTPUT_EMBEDDING.search(name) is not None
