"""Damaged checkpoints by the thousand: headers, indexes and configs, each made from a seed.

    python -m tests.mutations [--count 500] [--first 0]

Each is repaired, in this process, with a limit on its memory and time. What counts as lost: anything but a whole OUT that
verifies or one printable line from a `DeltamendError`; a file where none belongs; more than 10 s. Prints the seeds of what
was lost and exits 1.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

import deltamend
from deltamend.checkpoint.safetensors_header import encode_header

MEMORY = 3 << 30
"""Bytes of address space; numpy, scipy and OpenBLAS take one of them before anything is read."""
SECONDS = 10
INDEX, CONFIG, WEIGHTS = "model.safetensors.index.json", "config.json", "model.safetensors"

STRANGE: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**62, 2**63, 2**64, 10**30, -(2**63), 1e308, -0.5, 1.0, "", "F32", "BF16", "I64",
    "F8_E4M3", "../../x", "/etc/passwd", "a\x00b", "\x1b[31m", "\ud800", "x" * 5000, [], {}, [[]], [0], [2**62, 0], [2**62] * 4,
    [1] * 20, {"dtype": "F32"}, {"a": {"b": {"c": []}}},
)  # fmt: skip
"""What a value may become."""

NAMES = (
    "",
    "__metadata__",
    "a",
    "model.norm.weight",
    "../x",
    "..",
    "a\nb",
    "x" * 3000,
    "\ud800",
    "weight_map",
    "dtype",
)


def template() -> dict[str, dict[str, bytes]]:
    """The files of a pair in two shards, small enough to be repaired in milliseconds."""
    rng = np.random.default_rng(0)
    shapes = {
        "model.embed_tokens.weight": (12, 8),
        "model.layers.0.mlp.up_proj.weight": (16, 8),
        "model.layers.0.mlp.down_proj.weight": (8, 16),
        "model.norm.weight": (8,),
    }
    base = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    finetuned = {name: value + 0.01 * rng.normal(size=value.shape) for name, value in base.items()}
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 12}
    return {
        "base": {**_weights(base, WEIGHTS), CONFIG: json.dumps(config).encode()},
        "finetuned": {
            **_weights(dict(list(finetuned.items())[:2]), "model-00001-of-00002.safetensors"),
            **_weights(dict(list(finetuned.items())[2:]), "model-00002-of-00002.safetensors"),
            INDEX: json.dumps(
                {
                    "metadata": {"total_size": 720},
                    "weight_map": {
                        name: f"model-0000{1 + number // 2}-of-00002.safetensors" for number, name in enumerate(shapes)
                    },
                }
            ).encode(),
            CONFIG: json.dumps(config).encode(),
            "tokenizer.json": b"{}",
        },
    }


def _weights(tensors: dict[str, Any], file: str) -> dict[str, bytes]:
    header, _ = encode_header([(name, "BF16", value.shape) for name, value in tensors.items()], {"format": "pt"})
    return {file: header + b"".join(value.astype(ml_dtypes.bfloat16).tobytes() for value in tensors.values())}


def mutated(files: dict[str, dict[str, bytes]], seed: int) -> dict[str, dict[str, bytes]]:
    """The files with one to three faults in the header, the index or the config of one side."""
    chance = random.Random(seed)
    found = {side: dict(content) for side, content in files.items()}
    side = chance.choice(["base", "finetuned", "finetuned"])
    weights = [name for name in found[side] if name.endswith(".safetensors")]
    for _ in range(chance.randint(1, 3)):
        name = chance.choice([*weights, *weights, CONFIG, INDEX if INDEX in found[side] else weights[0]])
        change = chance.choice(_CHANGES[name.endswith(".safetensors")])
        found[side][name] = change(found[side][name], chance)
    return found


def _flip(content: bytes, chance: random.Random) -> bytes:
    """Other bytes, within the header of a file of weights."""
    changed = bytearray(content)
    limit = min(len(changed), 8 + int.from_bytes(content[:8], "little")) if len(content) > 8 else len(changed)
    for _ in range(chance.randint(1, 6)):
        if limit > 0:
            changed[chance.randrange(limit)] = chance.randrange(256)
    return bytes(changed)


def _cut(content: bytes, chance: random.Random) -> bytes:
    return content[: chance.randrange(len(content) + 1)]


def _repeat(content: bytes, chance: random.Random) -> bytes:
    """A stretch of bytes once more, or gone."""
    start = chance.randrange(len(content) + 1)
    stop = min(len(content), start + chance.randrange(1, 60))
    return content[:start] + (content[start:stop] * chance.choice([0, 2, 40])) + content[stop:]


def _length(content: bytes, chance: random.Random) -> bytes:
    """Another length of the header."""
    real = int.from_bytes(content[:8], "little")
    claimed = chance.choice(
        [0, 1, real - 1, real + 1, real + 8, 2**31, 2**62, 2**63, 2**64 - 1, chance.randrange(2**20)]
    )
    return (claimed % 2**64).to_bytes(8, "little") + content[8:]


def _header(content: bytes, chance: random.Random) -> bytes:
    """The header as JSON with another value or name somewhere in it, and the right length."""
    length = int.from_bytes(content[:8], "little")
    text = _json(content[8 : 8 + length], chance)
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def _json(content: bytes, chance: random.Random) -> bytes:
    """JSON with another value or name somewhere in it, or nested without end."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return content
    if chance.random() < 0.03:
        return b"[" * 100_000 + content
    places = list(_places(value))
    if not places:
        return json.dumps(chance.choice(STRANGE)).encode()
    holder, key = chance.choice(places)
    match chance.randrange(5):
        case 0 if isinstance(holder, dict):
            holder[chance.choice(NAMES)] = holder.pop(key)
        case 1 if isinstance(holder, dict):
            holder[chance.choice(NAMES)] = {
                "dtype": chance.choice(["F32", "BF16", "I4", "U8"]),
                "shape": [chance.choice([0, 1, 2**40, 2**62]) for _ in range(chance.randrange(4))],
                "data_offsets": [chance.choice([0, 8, 720, 2**40]), chance.choice([0, 8, 720, 2**40])],
            }
        case 2:
            del holder[key]
        case 3 if isinstance(holder[key], int) and not isinstance(holder[key], bool):
            holder[key] += chance.choice([-1, 1, 2, 8, 2**31, 2**62])
        case _:
            holder[key] = chance.choice(STRANGE)
    return json.dumps(value, ensure_ascii=chance.random() < 0.8).encode("utf-8", "surrogatepass")


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (holder, key) of nested lists and objects."""
    items = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    for key, inner in items:
        yield value, key
        yield from _places(inner)


_Change = Callable[[bytes, random.Random], bytes]
_CHANGES: dict[bool, tuple[_Change, ...]] = {
    True: (_header, _header, _header, _flip, _length, _cut, _repeat),
    False: (_json, _json, _json, _flip, _cut, _repeat),
}
"""By whether it is a file of weights."""


def outcome(files: dict[str, dict[str, bytes]], seed: int, scratch: Path) -> str:
    """Repair one damaged pair: "refused", "repaired", or what was lost."""
    case = scratch / "case"
    for side, content in mutated(files, seed).items():
        (case / side).mkdir(parents=True)
        for name, data in content.items():
            (case / side / name).write_bytes(data)
    inputs = _listing(scratch)
    signal.alarm(SECONDS)
    try:
        kind = "adapter" if seed % 4 == 0 else "checkpoint"
        deltamend.repair(case / "base", case / "finetuned", case / "out", workers=1, output=kind)  # type: ignore[arg-type]
        faults = deltamend.verify(case / "out")
        found = f"OUT does not verify: {faults[0]}" if faults else "repaired"
    except deltamend.DeltamendError as error:
        text = str(error)
        found = "refused" if text.isprintable() and text and len(text) < 20_000 else f"an odd message: {text[:200]!r}"
    except BaseException as error:
        found = f"{type(error).__name__}: {str(error)[:200]}"
    finally:
        signal.alarm(0)
    made = {path for path in _listing(scratch) - inputs if (case / "out") not in (path, *path.parents)}
    if made:
        found = f"files outside of OUT: {sorted(map(str, made))[:3]}"
    elif found != "repaired" and (case / "out").exists():
        found = f"OUT is there, though: {found}"
    shutil.rmtree(case)
    return found


def _listing(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def run(first: int, count: int) -> tuple[Counter[str], dict[int, str]]:
    """Outcomes of the seeds from `first` on, and the seeds that were lost."""
    files = template()
    tally: Counter[str] = Counter()
    lost: dict[int, str] = {}

    def too_long(*_: object) -> None:
        raise TimeoutError(f"more than {SECONDS} s")

    signal.signal(signal.SIGALRM, too_long)
    fast = Path("/dev/shm") if Path("/dev/shm").is_dir() else None  # noqa: S108 - a name of its own is made in it
    with tempfile.TemporaryDirectory(prefix="deltamend-mutations-", dir=fast) as scratch:
        for seed in range(first, first + count):
            found = outcome(files, seed, Path(scratch))
            tally[found if found in {"refused", "repaired"} else "lost"] += 1
            if found not in {"refused", "repaired"}:
                lost[seed] = found
    return tally, lost


def main() -> int:
    """Print the tally as JSON, and what was lost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--first", type=int, default=0)
    given = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    tally, lost = run(given.first, given.count)
    print(json.dumps({"tally": tally, "lost": lost}))  # noqa: T201 - what the caller reads
    return int(bool(lost))


if __name__ == "__main__":
    sys.exit(main())
