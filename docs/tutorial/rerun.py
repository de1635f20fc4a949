"""Run the commands of the tutorial, one after the other, and put what they print into its page.

python docs/tutorial/rerun.py WORK

WORK is an empty folder; the files of the tutorial are copied there. It takes about half an hour on two cores. Lines of a
```console block that begin with `$ ` are the commands; the lines below each are replaced by its output.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parent / "index.md"
_BLOCK = re.compile(r"(?<=^```console\n)(.*?)(?=^```$)", re.DOTALL | re.MULTILINE)


def rerun(work: Path) -> str:
    """The page with fresh outputs.

    Raises:
        subprocess.CalledProcessError: a command fails; nothing after it is run.
    """
    work.mkdir(parents=True, exist_ok=True)
    for item in PAGE.parent.glob("*.*"):
        if item != PAGE:
            shutil.copy(item, work)
    environment = {**os.environ, "COLUMNS": "100", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    def output(block: re.Match[str]) -> str:
        lines = []
        for command in re.findall(r"^\$ (.*)$", block[0], re.MULTILINE):
            print(f"$ {command}", flush=True)
            ran = subprocess.run(  # noqa: S602 - commands of our own page, with its globs
                command, shell=True, cwd=work, env=environment, check=True, text=True, stdout=subprocess.PIPE
            )
            printed = [line.rstrip() for line in ran.stdout.replace(str(Path.home()), "~").splitlines()]
            lines += [f"$ {command}", *printed]
        return "\n".join(lines) + "\n"

    return _BLOCK.sub(output, PAGE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    PAGE.write_text(rerun(Path(sys.argv[1])), encoding="utf-8")
