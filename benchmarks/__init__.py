"""What was measured of deltamend, in results/, and the scripts that measured it, in a folder for each subject.

A script is run from the root of the repository, as `python -m benchmarks.FOLDER.SCRIPT`; `--help` says what it does.
"""
