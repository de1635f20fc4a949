"""How far known fine-tunes are from their base, and what `deltamend` says where BASE is not the parent.

    python -m benchmarks.diagnosis.parent BASE FINETUNED…

BASE and FINETUNED are what `deltamend demo` leaves in its cache. The sizes of the studies' 56 fine-tuned models come from
docs/results. Everything else is made from BASE as it is read: rounded, transposed, with its heads in another order. The table
is printed and written to benchmarks/results/diagnosis/parent.md.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.shared.arguments import script_parser
from benchmarks.shared.paths import RESULTS, ROOT
from deltamend.checkpoint.checkpoint_folder import StoredTensor
from deltamend.errors import PairingError
from deltamend.inputs.open_models import OpenPair, open_pair
from deltamend.inputs.parentage import parent_of
from deltamend.inputs.weight_samples import Values

Array = np.ndarray[Any, np.dtype[np.float32]]
HEAD = 64


def noise(scale: float) -> Callable[[Array], Array]:
    """Independent normal noise of `scale` times the size of the matrix's entries."""

    def change(weights: Array) -> Array:
        random = np.random.default_rng(weights.size)
        found: Array = (weights + scale * weights.std() * random.standard_normal(weights.shape)).astype(np.float32)
        return found

    return change


def rounded(bits: int) -> Callable[[Array], Array]:
    """To 2^bits levels for every 32 neighbours, as GGUF's formats of 8 and 4 bits do."""

    def change(weights: Array) -> Array:
        blocks = weights.reshape(-1, 32)
        scale = np.abs(blocks).max(axis=1, keepdims=True) / 2 ** (bits - 1)
        scale[scale == 0] = 1
        found: Array = (np.clip(np.round(blocks / scale), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * scale).astype(
            np.float32
        )
        return found.reshape(weights.shape)

    return change


def transposed(weights: Array) -> Array:
    """Square matrices the other way round."""
    return np.ascontiguousarray(weights.T) if weights.shape[0] == weights.shape[1] else weights


def heads_moved(weights: Array) -> Array:
    """The rows of square matrices shifted by a head."""
    return np.roll(weights, HEAD, axis=0) if weights.shape[0] == weights.shape[1] else weights


def scaled(weights: Array) -> Array:
    """The scales of a quantised model left out."""
    return 100 * weights


def neurons_in_another_order(weights: Array) -> Array:
    """Every row somewhere else, as in a model of the same architecture that was trained from another start."""
    return np.random.default_rng(0).permutation(weights)[:, np.random.default_rng(1).permutation(weights.shape[1])]


CASES: dict[str, Callable[[Array], Array]] = {
    "BASE rounded to 8 bits": rounded(8),
    "BASE rounded to 4 bits": rounded(4),
    "BASE and noise, a tenth of its size": noise(0.1),
    "BASE and noise of its own size": noise(1.0),
    "BASE and noise, three times its size": noise(3.0),
    "square matrices transposed": transposed,
    "heads of square matrices moved": heads_moved,
    "scales of quantised weights missing": scaled,
    "another model: all rows and columns in another order": neurons_in_another_order,
}


def changed(pair: OpenPair, change: Callable[[Array], Array]) -> Values:
    """Read FINETUNED's tensors as they are after a change; one tensor at a time is kept in memory."""
    held: dict[str, Array] = {}

    def read(tensor: StoredTensor, start: int, stop: int) -> Array:
        if tensor.name not in held:
            held.clear()
            values = pair.finetuned.values(tensor, 0, tensor.elements).astype(np.float32)
            held[tensor.name] = change(values.reshape(tensor.shape))
        return held[tensor.name].reshape(-1)[start:stop]

    return read


def row(name: str, pair: OpenPair, finetuned: Values) -> str:
    """What a sample of the weights says, and the likely cause where it stops."""
    values = pair.base.values, finetuned
    found = parent_of(pair.pairing.pairs, values, allow_unrelated=True)
    said: str = found.verdict
    try:
        parent_of(pair.pairing.pairs, values)
    except PairingError as error:
        said = f"{said}; {str(error).partition('the likely cause: ')[2].partition('. Give')[0]}"
    wrong = len(found.unrelated)
    return f"| {name} | {found.share:.2f} | {found.correlation:.4f} | {found.distance:.4f} | {wrong} of {found.matrices} | {said} |"


def sizes_of_the_studies() -> Iterator[str]:
    """‖Δ‖/‖W_base‖ over all matrices of the models of both studies."""
    for study in ("smollm2", "fresh"):
        results = json.loads(
            (ROOT / "docs" / "results" / study / "results" / "results.json").read_text(encoding="utf-8")
        )
        sizes = sorted(_fields(results, "relative_size"))
        yield (
            f"The {len(sizes)} fine-tuned models of the study {study}: from {sizes[0]:.4f} to {sizes[-1]:.4f}, median "
            f"{statistics.median(sizes):.4f}."
        )


def _fields(value: object, name: str) -> Iterator[float]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from [inner] if key == name and isinstance(inner, float) else _fields(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from _fields(inner, name)


def main() -> None:
    """Write the table."""
    parser = script_parser(__doc__)
    parser.add_argument("base", type=Path)
    parser.add_argument("finetuned", nargs="*", type=Path)
    arguments = parser.parse_args()
    lines = [
        "| FINETUNED | β | correlation | ‖Δ‖/‖W_base‖ | matrices not from BASE | is BASE the parent? |",
        "|---|---|---|---|---|---|",
    ]
    for number, finetuned in enumerate(arguments.finetuned, 1):
        with open_pair(arguments.base, finetuned) as pair:
            lines.append(row(f"a fine-tuned model of the demo, {number}", pair, pair.finetuned.values))
    with open_pair(arguments.base, arguments.base, exclude="embed") as pair:
        lines += [row(name, pair, changed(pair, change)) for name, change in CASES.items()]
    table, sizes = "\n".join(lines), "\n".join(f"- {sentence}" for sentence in sizes_of_the_studies())
    text = f"# How far FINETUNED is from BASE\n\nWritten by `python -m benchmarks.diagnosis.parent`.\n\n{sizes}\n\n{table}\n"
    (RESULTS / "diagnosis" / "parent.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
