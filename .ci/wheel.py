"""Build the wheel, install it in an empty environment, and use it from a folder that is not the checkout.

    python .ci/wheel.py dist

Finds what the tests of a checkout cannot: a file that the wheel lacks, and a package that is imported but not required.
The environment is made from the Python that runs this script, with the versions of constraints.txt. Ends with an error at
the first thing that fails. Needs nothing but Python 3.11, git and a package index.
"""

from __future__ import annotations

import array
import json
import math
import os
import random
import shlex
import struct
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHAPES = {
    "model.embed_tokens.weight": (64, 32),
    "model.layers.0.input_layernorm.weight": (32,),
    "model.layers.0.self_attn.q_proj.weight": (32, 32),
    "model.layers.0.mlp.down_proj.weight": (32, 80),
}
"""Shapes of a checkpoint's tensors, few enough to be written without numpy, and named as in a Llama model."""

COMMANDS = (
    "deltamend --version",
    "deltamend repair --help",
    "deltamend methods",
    "deltamend repair base finetuned out",
    "deltamend verify out",
    "deltamend repair base finetuned adapter --as adapter",
    "deltamend diagnose base finetuned --html diagnosis.html",
    "deltamend compare base finetuned --html compare.html",
)
PYTHON = """
from pathlib import Path
import deltamend
assert Path(deltamend.__file__).parent.parent.name == "site-packages", f"imported from {deltamend.__file__}"
report = deltamend.repair("base", "finetuned", "out-python")
assert 0.5 < report.kept_energy < 1, report.kept_energy
"""


def main(dist: Path) -> None:
    """Build the wheel into `dist`, check its contents, install it, and run the commands of this file.

    Raises:
        SystemExit: something is missing or failed; says what.
    """
    with tempfile.TemporaryDirectory(prefix="deltamend-wheel-") as name:
        folder = Path(name)
        programs = folder / "venv" / "bin"
        venv.create(folder / "venv", with_pip=True)
        pip = ["python", "-m", "pip", "--quiet", "--disable-pip-version-check"]
        run([*pip, "wheel", "--no-deps", "--wheel-dir", "built", str(ROOT)], folder, programs)
        (built,) = (folder / "built").iterdir()
        if missing := sorted(tracked_files() - contents(built)):
            sys.exit(f"{built.name} lacks {', '.join(missing)}; see [tool.hatch.build.targets.wheel] in pyproject.toml")
        run([*pip, "install", "--constraint", str(ROOT / "constraints.txt"), str(built)], folder, programs)
        write_pair(folder)
        for command in COMMANDS:
            run(shlex.split(command), folder, programs)
        run(["python", "-c", PYTHON], folder, programs)
        for written in ("out/model.safetensors", "adapter/adapter_model.safetensors", "diagnosis.html", "compare.html"):
            if not (folder / written).stat().st_size:
                sys.exit(f"{written} is empty")
        dist.mkdir(exist_ok=True)
        (dist / built.name).write_bytes(built.read_bytes())
    sys.stdout.write(f"{dist / built.name}: installed in an empty environment, and used\n")


def tracked_files() -> set[str]:
    """Every file of the package that git knows, as the wheel should name it: relative to src."""
    git = ["git", "-C", str(ROOT / "src"), "ls-files", "-z", "deltamend"]
    listed = subprocess.run(git, check=True, capture_output=True, text=True)
    return {path for path in listed.stdout.split("\0") if path and (ROOT / "src" / path).exists()}


def contents(wheel: Path) -> set[str]:
    """The names of the files in a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def write_pair(folder: Path) -> None:
    """Write a base and a fine-tuned checkpoint of a few kB, in float32: `folder/base` and `folder/finetuned`."""
    draw = random.Random(0)
    base = {name: [draw.gauss(0, 0.02) for _ in range(math.prod(shape))] for name, shape in SHAPES.items()}
    tuned = {name: [value + draw.gauss(0, 0.001) for value in values] for name, values in base.items()}
    for name, shape in SHAPES.items():  # one direction far above the noise, for the filter to keep
        direction = [draw.gauss(0, 0.05) for _ in range(shape[-1])]
        tuned[name] = [value + direction[place % shape[-1]] for place, value in enumerate(tuned[name])]
    for name, weights in (("base", base), ("finetuned", tuned)):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps({"model_type": "llama", "torch_dtype": "float32"}))
        (folder / name / "model.safetensors").write_bytes(safetensors_bytes(weights))


def safetensors_bytes(weights: dict[str, list[float]]) -> bytes:
    """A safetensors file of float32 tensors, made by hand since an empty environment has no safetensors package."""
    header, data = {}, b""
    for name, values in weights.items():
        piece = array.array("f", values).tobytes()
        header[name] = {"dtype": "F32", "shape": SHAPES[name], "data_offsets": [len(data), len(data) + len(piece)]}
        data += piece
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def run(command: list[str], folder: Path, programs: Path) -> None:
    """Run a program of the environment in the folder, with nothing of the checkout on Python's path.

    Raises:
        SystemExit: the program failed.
    """
    sys.stdout.write(f"$ {shlex.join(command).strip()}\n")
    sys.stdout.flush()
    environment = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "PYTHONHOME"}}
    done = subprocess.run([programs / command[0], *command[1:]], cwd=folder, env=environment, check=False)
    if done.returncode:
        sys.exit(f"{command[0]}: exit code {done.returncode}")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
