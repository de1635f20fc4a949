"""Where a study's figures were made: machine and versions."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from pathlib import Path

from deltamend.machine.versions import installed_versions

_PACKAGES = ("deltamend", "torch", "transformers", "trl", "peft", "lm_eval", "datasets", "numpy", "scipy")


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide figures."""
    return {"python": platform.python_version(), **installed_versions(_PACKAGES)}


def machine_description() -> str:
    """Processor, cores and the accelerator where there is one, in one line."""
    import torch

    processor = platform.processor() or platform.machine()
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                processor = line.partition(":")[2].strip()
                break
    accelerator = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{processor}, {len(os.sched_getaffinity(0))} cores{accelerator}"
