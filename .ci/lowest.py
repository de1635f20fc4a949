"""Print the lowest version of every requirement in pyproject.toml, as constraints for pip.

    python .ci/lowest.py > constraints-lowest.txt

Every requirement must have the form `name>=version` or `name>=version,<limit>`, where extras may follow the name, so that
there is one lowest version; anything else ends with an error. Needs nothing but Python 3.11.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

_REQUIREMENT = re.compile(
    r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)(\[[a-z0-9,_-]+\])?>=(?P<version>[0-9]+(\.[0-9]+)*)(,<[0-9.]+)?"
)


def lowest_versions(pyproject: Path) -> dict[str, str]:
    """Name of every required distribution to the lowest version that every requirement on it allows.

    Covers the dependencies and all extras. An extra of the project itself, such as `deltamend[hf]`, is left out, since
    what it stands for is listed in its own place.

    Raises:
        ValueError: a requirement is not of the form `name>=version`.
    """
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    lowest: dict[str, str] = {}
    for requirement in [
        *project["dependencies"],
        *(r for extra in project["optional-dependencies"].values() for r in extra),
    ]:
        if requirement.startswith(f"{project['name']}["):
            continue
        found = _REQUIREMENT.fullmatch(requirement)
        if found is None:
            raise ValueError(f"{pyproject}: {requirement!r} has no lowest version; write it as name>=version")
        name, version = found["name"], found["version"]
        lowest[name] = max(lowest.get(name, version), version, key=_numbers)
    return lowest


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


if __name__ == "__main__":
    try:
        versions = lowest_versions(Path(__file__).parents[1] / "pyproject.toml")
    except ValueError as error:
        sys.exit(str(error))
    sys.stdout.writelines(f"{name}=={version}\n" for name, version in sorted(versions.items()))
