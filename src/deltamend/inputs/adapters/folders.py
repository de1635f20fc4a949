"""Where in a folder an adapter lies: PEFT writes every adapter but the one called "default" to a subfolder of its name."""

from __future__ import annotations

from pathlib import Path

from deltamend.checkpoint.file_names import ADAPTER_CONFIG_FILE
from deltamend.errors import CheckpointError


def find_adapter(folder: Path) -> tuple[Path, list[str]]:
    """The folder with the files of the adapter, and what to say of the choice.

    Args:
        folder: what the user named.

    Returns:
        The folder itself where it holds an adapter, or the only subfolder that does; else the folder as it is.

    Raises:
        CheckpointError: several subfolders hold an adapter, and the folder itself holds none; they are listed.
    """
    try:
        inner = sorted(path.name for path in folder.iterdir() if (path / ADAPTER_CONFIG_FILE).is_file())
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be listed ({error.strerror}); check its permissions") from error
    others = [name for name in inner if not name.startswith("checkpoint-")]
    if (folder / ADAPTER_CONFIG_FILE).exists():
        listed = ", ".join(map(ascii, others))
        said = f"{folder.name}: its own adapter is read; for another, name its subfolder too: {listed}"
        return folder, [said] if others else []
    if len(inner) == 1:
        return folder / inner[0], [f"{folder.name}: the adapter in its subfolder {inner[0]!a} is read"]
    if inner:
        raise CheckpointError(
            f"{folder}: holds the adapters {', '.join(map(ascii, inner))}; name one of them, such as {folder / inner[0]}"
        )
    return folder, []
