"""What was measured of deltamend, and the scripts that measured it: `python -m benchmarks.FOLDER.SCRIPT --help` from the repository's root."""
