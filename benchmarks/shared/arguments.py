"""The command line of a script, described by the script's own docstring."""

from __future__ import annotations

import argparse
import re


def script_parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser whose help is a module's docstring.

    Args:
        doc: the docstring, which holds the command `python -m benchmarks.FOLDER.SCRIPT`.

    Raises:
        ValueError: it does not.
    """
    command = re.search(r"python -m benchmarks[\w.]+", doc or "")
    if command is None:
        raise ValueError("the script's docstring does not say how it is run: python -m benchmarks.FOLDER.SCRIPT")
    return argparse.ArgumentParser(
        prog=command[0], description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
