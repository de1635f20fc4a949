"""The runs of `deltamend repair` that same_bytes.py compares, as they are written on the command line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

DEMO = "demo"

METHODS = (
    "dg-hard",
    "shrink",
    "rank",
    "laser",
    "intruder",
    "wise-ft",
    "task-arithmetic lambda=1.3",
    "magnitude",
    "ties",
    "breadcrumbs",
    "dare",
    "della",
    "fapm",
    "graft",
    "fisher fisher=@fisher",
    "null-space activations=@activations",
    "hybrid",
    "none",
    "revert",
)
"""Every method, each as a checkpoint and as an adapter. @NAME stands for the pair's file of that name."""
LOW_RANK_PARAMETERS = (
    "dg-hard rule=edge",
    "dg-hard rule=tracy-widom scale=0.8",
    "dg-hard noise=q25",
    "dg-hard noise=screenot",
    "shrink loss=operator noise=bulk-fit",
    "rank rank=2",
)
"""Other parameters of methods that an adapter can hold; both kinds of output."""
PARAMETERS = (
    "dg-hard noise=bulk-fit",
    "dg-hard noise=known noise_level=0.0012",
    "dg-hard noise=rounding-floor",
    "shrink loss=nuclear",
    "shrink loss=soft",
    "rank share=0.1",
    "laser share=0.3",
    "magnitude scope=model",
    "fapm density=0.3",
    "graft mask=@mask",
    "fisher fisher=@fisher base_fisher=@base_fisher alpha=0.3",
    "null-space activations=@activations effect=10 share=0.5",
    "null-space activations=@activations ridge=0.3",
    'hybrid steps=[{"method":"shrink"},{"method":"magnitude","density":0.5}]',
)
"""Other parameters, as a checkpoint."""
OPTIONS = (
    "dg-hard --out-dtype fp32",
    "dg-hard --out-dtype bf16 --rounding stochastic",
    "dg-hard --vectors 0.5",
    "dg-hard --workers 2",
    "--config @rules",
)
"""Options of a run, as a checkpoint; a run without --workers has one worker."""
ADAPTER_OPTIONS = ("dg-hard --out-dtype fp32", "dg-hard --vectors 0.5", "dg-hard --workers 2", "--config @spectral")

CHECKPOINTS_OF: Mapping[str, tuple[str, ...]] = {
    DEMO: (
        *METHODS,
        "auto",
        "dg-hard rule=tracy-widom scale=0.8",
        "fisher fisher=@fisher base_fisher=@base_fisher alpha=0.3",
        "graft mask=@mask",
        *OPTIONS,
        "--config @mergekit",
    ),
    "llama": (
        *METHODS,
        *LOW_RANK_PARAMETERS,
        *PARAMETERS,
        *OPTIONS,
        "--config @mergekit",
        "wise-ft --include self_attn --exclude v_proj --vectors base",
        "magnitude --max-shard-size 60KB",
    ),
    "mixtral": (*METHODS, *OPTIONS, "graft mask=@mask", "dare --split-fused", "dg-hard --split-fused"),
    "gpt2": (*METHODS, *OPTIONS, "graft mask=@mask", "della --split-fused", "dg-hard --split-fused"),
    "vocabulary": (
        "dg-hard",
        "fisher fisher=@fisher",
        "magnitude",
        "null-space activations=@activations",
        "dare --rounding stochastic",
    ),
    "lora": ("dg-hard", "dg-hard spectrum=nonzero", "rank rank=3", "wise-ft", "none"),
    "fp8": ("dg-hard", "dg-hard noise=rounding-floor", "wise-ft", "none --out-dtype fp32"),
}
"""The runs of each pair that write a checkpoint."""
ADAPTERS_OF: Mapping[str, tuple[str, ...]] = {
    DEMO: (*METHODS, *ADAPTER_OPTIONS),
    "llama": (*METHODS, *LOW_RANK_PARAMETERS, *ADAPTER_OPTIONS),
    "mixtral": METHODS,
    "gpt2": (*METHODS, *ADAPTER_OPTIONS, "dg-hard --split-fused"),
    "vocabulary": ("dg-hard",),
    "lora": ("dg-hard spectrum=nonzero", "none"),
    "fp8": ("dg-hard",),
}
"""The runs of each pair that write an adapter; the program refuses those of methods whose result has full rank."""

CONFIGS: Mapping[str, str] = {
    "rules": """\
method: dg-hard
parameters: {noise: q25}
rules:
  - {kind: embedding, method: none}
  - {kind: attention, layers: "0,2-10", method: wise-ft, parameters: {alpha: 0.3}}
  - {filter: "down_proj|c_proj", parameters: {scale: 0.8}}
  - {kind: norm, method: wise-ft, parameters: {alpha: 0.5}}
vectors: 0.25
exclude: lm_head
""",
    "spectral": """\
method: rank
parameters: {rank: [{filter: attn, value: 2}, {value: 3}]}
rules:
  - {kind: embedding, method: revert}
  - {layers: "1", kind: mlp, method: shrink}
""",
    "mergekit": """\
merge_method: ties
base_model: base
models:
  - model: base
  - model: finetuned
    parameters: {density: [{filter: mlp, value: 0.5}, {value: 0.2}]}
parameters: {lambda: 0.8}
dtype: bfloat16
""",
}
"""YAML files for --config, by the name that stands for them above."""


@dataclass(frozen=True)
class Run:
    """One call of `deltamend repair`: the pair, the kind of output, and the options as they stand in the lists above."""

    pair: str
    output: str
    options: str

    @property
    def key(self) -> str:
        """Its name in the table."""
        return f"{self.pair} | {self.output} | {self.options}"

    @property
    def files(self) -> frozenset[str]:
        """Names of the pair's files that it reads."""
        named = {name for token in self.options.split() if (name := token.rpartition("@")[2]) != token}
        return frozenset(named | ({"auto"} if self.options == "auto" else set()))

    def arguments(self, files: Mapping[str, str]) -> list[str]:
        """Its options for the command line, with the pair's files by their names.

        Raises:
            KeyError: the pair has no file of a name that the options give.
        """
        found: list[str] = []
        for number, token in enumerate(self.options.split()):
            start, at, name = token.rpartition("@")
            text = start + files[name] if at else token
            if number == 0 and not text.startswith("--"):
                found += ["--method", text]
            elif "=" in text:
                found += ["--set", text]
            else:
                found.append(text)
        return found if "--workers" in found else [*found, "--workers", "1"]


def runs_of(pairs: Iterable[str]) -> list[Run]:
    """All runs of these pairs."""
    kinds = (("checkpoint", CHECKPOINTS_OF), ("adapter", ADAPTERS_OF))
    return [Run(pair, kind, options) for pair in pairs for kind, table in kinds for options in table[pair]]
