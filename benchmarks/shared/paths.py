"""Where things are in the repository."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
"""Folder of the repository."""

RESULTS = ROOT / "benchmarks" / "results"
"""What the scripts wrote, in a folder for each folder of scripts."""
