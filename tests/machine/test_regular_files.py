"""How many files may be open, and what is said where it is too many."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.inputs.numpy_pairs import normal, tuned, write

PROGRAM = """
import os, resource, sys
from pathlib import Path
from deltamend.machine.regular_files import open_regular, reason
soft, hard = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
opened = []
try:
    for _ in range(300):
        opened.append(open_regular(Path(sys.executable)))
except OSError as error:
    said = reason(error)
    for descriptor in opened:
        os.close(descriptor)
    print(len(opened), said)
else:
    print(len(opened), "no error")
"""


def _opened(soft: int, hard: int) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(soft), str(hard)], capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.mark.slow
def test_the_limit_is_raised_as_far_as_the_system_allows() -> None:
    assert _opened(64, 4096) == "300 no error\n"


@pytest.mark.slow
def test_a_limit_that_cannot_be_raised_is_named_with_the_remedy() -> None:
    said = _opened(64, 64)
    assert "cannot be opened, as this process may have 64 files open; allow it more (ulimit -n)" in said
    assert "permission" not in said


REPAIR = """
import resource, sys
import deltamend
soft, hard = map(int, sys.argv[1:3])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
try:
    deltamend.repair(*sys.argv[3:], method="wise-ft")
except deltamend.DeltamendError as error:
    print(error)
else:
    print(deltamend.verify(sys.argv[5]))
"""
SHARDS = 60


@pytest.fixture(scope="module")
def many_shards(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder, random = tmp_path_factory.mktemp("many"), np.random.default_rng(0)
    base = {f"model.layers.{layer}.mlp.up_proj.weight": normal(random, (8, 8)) for layer in range(SHARDS)}
    for side, tensors in {"base": base, "finetuned": tuned(random, base)}.items():
        write(folder / side, tensors)
        (folder / side / "model.safetensors").unlink()
        shards = {name: f"model-{at:05}-of-{SHARDS:05}.safetensors" for at, name in enumerate(tensors, 1)}
        for name, shard in shards.items():
            save_file({name: tensors[name]}, folder / side / shard)
        (folder / side / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    return folder / "base", folder / "finetuned"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("soft", "hard", "says"),
    [
        (140, 4096, "[]"),  # enough for both inputs, but not for the output as well
        (70, 4096, "[]"),
        (140, 140, "cannot be written, as this process may have 140 files open; allow it more (ulimit -n)"),
        (70, 70, "cannot be opened, as this process may have 70 files open; allow it more (ulimit -n)"),
    ],
)
def test_a_model_in_many_shards_is_repaired_as_far_as_the_system_allows(
    soft: int, hard: int, says: str, many_shards: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-c", REPAIR, str(soft), str(hard), *map(str, (*many_shards, out))],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert says in done.stdout
    assert "permission" not in done.stdout
    assert out.exists() == (says == "[]")
