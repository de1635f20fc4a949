"""The YAML file that lists many cells, and the records that it names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import Field, ValidationError

from deltamend.errors import UsageError
from deltamend.machine.yaml_text import YamlError, read_yaml
from deltamend.records import Record, first_problem
from deltamend.scoring.paired_cell import PairedCell, open_cell


class CellFiles(Record):
    """One cell as a YAML file lists it; paths are relative to that file."""

    name: str
    cluster: str | None = Field(
        default=None, description="Name that seeds of one cell share; by default the cell's own name."
    )
    base: str
    finetuned: str
    repaired: dict[str, str] = Field(min_length=1)
    target: str
    target_files: dict[str, str] | None = None
    benchmarks: list[str] | None = None


class CellsFile(Record):
    """The YAML file that lists the cells."""

    cells: list[CellFiles] = Field(min_length=1)


def read_cells_file(path: Path) -> CellsFile:
    """Read the YAML list of cells.

    Raises:
        UsageError: it cannot be read, or a field is wrong.
    """
    try:
        return CellsFile.model_validate(read_yaml(path))
    except YamlError as error:
        raise UsageError(f"{path}: cannot be read as YAML ({error}); give a list of cells") from error
    except ValidationError as error:
        field, problem = first_problem(error)
        raise UsageError(f"{path}: {field or 'the file'}: {problem}") from error


def files_of_cells(path: Path) -> list[Path]:
    """The files and folders of records that the YAML list at `path` names.

    Raises:
        UsageError: see `read_cells_file`.
    """
    return [
        path.parent / file
        for cell in read_cells_file(path).cells
        for file in (cell.base, cell.finetuned, *cell.repaired.values(), *(cell.target_files or {}).values())
    ]


def open_cells(
    path: Path, *, metrics: Mapping[str, str] | None = None, common_items: bool = False
) -> tuple[list[PairedCell], list[str]]:
    """The cells of a YAML file, and the cluster of each.

    Raises:
        UsageError: the file is wrong, or two cells have one name.
        EvaluationError: a record cannot be read or paired.
    """
    listed = read_cells_file(path).cells
    names = [cell.name for cell in listed]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"{path}: two cells are named {name!r}; name seeds apart and give them the same cluster")

    def located(files: Mapping[str, str]) -> dict[str, str | Path]:
        return {model: path.parent / file for model, file in files.items()}

    cells = [
        open_cell(
            path.parent / cell.base,
            path.parent / cell.finetuned,
            located(cell.repaired),
            target=cell.target,
            target_files=None if cell.target_files is None else located(cell.target_files),
            benchmarks=cell.benchmarks,
            metrics=metrics,
            common_items=common_items,
            name=cell.name,
        )
        for cell in listed
    ]
    return cells, [cell.cluster or cell.name for cell in listed]
