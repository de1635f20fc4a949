"""What `mkdocs build` does to these pages beyond Markdown.

- A line `<!-- generated: NAME -->` is replaced by text made from the program itself, so that it cannot be out of date.
- A file of the repository that a page links to (a study's file, a benchmark's output) becomes a page of the site.
- A built page that would load anything from the network is a warning, which `make docs` treats as an error.
"""

from __future__ import annotations

import logging
import os
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pydantic import BaseModel
from pydantic.fields import FieldInfo

ROOT = Path(__file__).parents[1]
DOCS = Path(__file__).parent
REPOSITORY = "repository"
"""Folder of the site for files that lie outside docs/, or in it and are no page."""

_LINK = re.compile(r"(?<=\]\()([^)#\s]+)(?=[)#])")
_MARKER = re.compile(r"^<!-- generated: ([\w.-]+) -->$", re.MULTILINE)
_LOADS = re.compile(
    r"<(?:script|img|iframe|link(?![^>]*rel=\"?(?:canonical|prev|next))) [^>]*(?:src|href)=\"?(?:https?:)?//[^>]*>"
)
_LANGUAGES = {".py": "python", ".yaml": "yaml", ".toml": "toml", ".json": "json", ".sh": "bash"}
_log = logging.getLogger("mkdocs.hooks.deltamend")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files of the repository that pages link to, and every study's report under a name of its own."""
    for report in DOCS.glob("results/*/results/index.html"):  # its README.md is the folder's index
        files.append(File.generated(config, _uri(report, set()), abs_src_path=str(report)))
    known = _included(files)
    waiting = [DOCS / file.src_uri for file in files.documentation_pages()]
    while waiting:
        page = waiting.pop()
        for target in _links(page):
            uri = _uri(target, known)
            if uri not in known:
                known.add(uri)
                files.append(File.generated(config, uri, content=_as_page(target)))
                if target.suffix == ".md":
                    waiting.append(target)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put in what is generated, and let links to files of the repository lead to their pages."""
    del config
    known = _included(files)
    source = page.file.src_uri
    if source.startswith(f"{REPOSITORY}/"):
        folder = (ROOT / source.removeprefix(f"{REPOSITORY}/")).parent
    else:
        folder = (DOCS / source).parent
        markdown = _MARKER.sub(lambda found: GENERATORS[found[1]](), markdown)

    def relative(found: re.Match[str]) -> str:
        target = _target(folder, found[1])
        return found[1] if target is None else posixpath.relpath(_uri(target, known), posixpath.dirname(source) or ".")

    return _LINK.sub(relative, markdown)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Warn of what a reader without a network would miss."""
    del config
    for found in _LOADS.finditer(output):
        _log.warning("%s loads %s from the network", page.file.src_uri, found[0])
    return output


def _included(files: Iterable[File]) -> set[str]:
    return {
        file.src_uri
        for file in files
        if not file.inclusion.is_excluded()  # type: ignore[no-untyped-call]
    }


def _links(page: Path) -> Iterator[Path]:
    for link in _LINK.findall(page.read_text(encoding="utf-8")):
        target = _target(page.parent, link)
        if target is not None:
            yield target


def _target(folder: Path, link: str) -> Path | None:
    """The file of the repository that a relative link means; a folder stands for its README.md."""
    if re.match(r"[a-z]+:|/", link):
        return None
    target = Path(os.path.normpath(folder / link))
    if target.is_dir():
        target /= "README.md"
    return target if target.is_file() and target.is_relative_to(ROOT) else None


def _uri(target: Path, known: set[str]) -> str:
    """Where a file of the repository is in the site: its place in docs/, or a page of its own."""
    inside = target.relative_to(DOCS).as_posix() if target.is_relative_to(DOCS) else None
    if inside in known:
        return str(inside)
    if inside is not None and target.name == "index.html":
        return posixpath.join(posixpath.dirname(inside), "report.html")
    path = target.relative_to(ROOT).as_posix()
    return f"{REPOSITORY}/{path}" if target.suffix == ".md" else f"{REPOSITORY}/{path}.md"


def _as_page(target: Path) -> str:
    """A file as Markdown, out of the search: as it is, or its text in a block of code."""
    text = target.read_text(encoding="utf-8")
    if target.suffix != ".md":
        name = target.relative_to(ROOT).as_posix()
        text = f"# {name}\n\n~~~~~~ {_LANGUAGES.get(target.suffix, 'text')}\n{text}\n~~~~~~\n"
    return f"---\nsearch:\n  exclude: true\n---\n\n{text}"


# What is generated.


def commands() -> str:
    """Every command of the program with its arguments and options, as its own help has them."""
    from typer.main import get_command

    from deltamend.cli.commands import command_line

    return "\n".join(_command_pages(get_command(command_line()), "deltamend"))


def _command_pages(command: Any, path: str) -> Iterator[str]:
    context = command.make_context(path, [], resilient_parsing=True)
    rows: dict[str, list[tuple[str, str]]] = {"argument": [], "option": []}
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            rows["argument"].append((parameter.name.upper(), parameter.help or ""))
        else:
            record = parameter.get_help_record(context)
            rows["option"] += [record] if record else []
    usage = " ".join([path, *(name if _required(command, name) else f"[{name}]" for name, _ in rows["argument"])])
    yield f"## {path}\n\n{_text(_unwrapped(command.help or ''))}\n\n```text\n{usage}{' [OPTIONS]' if rows['option'] else ''}\n```\n"
    for kind, lines in rows.items():
        if lines:
            yield f"| {kind} | meaning |\n|---|---|"
            yield "".join(f"| {_code(name)} | {_text(meaning)} |\n" for name, meaning in lines)
    for name, subcommand in getattr(command, "commands", {}).items():
        yield from _command_pages(subcommand, f"{path} {name}")


def _required(command: Any, name: str) -> bool:
    return any(parameter.required for parameter in command.params if parameter.name.upper() == name)


def _unwrapped(text: str) -> str:
    """Paragraphs on one line each."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def _code(text: str) -> str:
    return "`" + text.replace("|", "\\|") + "`"


def _text(text: str) -> str:
    """Plain text for a table or a paragraph; what is between backticks stays code."""
    parts = re.split(r"(`[^`]*`)", text)
    escaped = [part if part.startswith("`") else re.sub(r"([<>*_\[\]\\])", r"\\\1", part) for part in parts]
    return "".join(escaped).replace("|", "\\|")


def python_api() -> str:
    """One entry for each public name, from its docstring, with a table of the fields of a record."""
    import deltamend

    kinds: dict[str, list[str]] = {"Functions": [], "Classes": [], "Errors": []}
    for name in deltamend.__all__:
        value = getattr(deltamend, name)
        if isinstance(value, type):
            kinds["Errors" if issubclass(value, Exception) else "Classes"].append(name)
        elif callable(value):
            kinds["Functions"].append(name)
    known = {getattr(deltamend, name): f"[{name}](#deltamend.{name})" for name in kinds["Classes"]}
    lines = []
    for kind, names in kinds.items():
        lines += [f"## {kind}", ""]
        for name in names:
            lines += [f"::: deltamend.{name}", ""]
            value = getattr(deltamend, name)
            if isinstance(value, type) and issubclass(value, BaseModel) and value.model_fields:
                lines += [_rows(value, known, defaults=value is deltamend.RepairOptions)]
    return "\n".join(lines)


def repair_options() -> str:
    """Every key of a YAML file for `deltamend repair`."""
    from deltamend.repairing.yaml_config import RepairConfig

    return _rows(RepairConfig, {}, defaults=True)


def manifest() -> str:
    """Every field of `deltamend.json`."""
    from deltamend.checkpoint import manifest as records

    kinds = (
        records.Manifest, records.InputRecord, records.FileRecord, records.LeftOutRecord, records.ParentRecord,
        records.CoverageRecord, records.TensorRecord,
        records.PartRecord, records.SpectrumRecord, records.AdapterRecord, records.RunRecord,
    )  # fmt: skip
    return _models(kinds, defaults=False)


def rule() -> str:
    """Every key of a rule."""
    from deltamend.repairing.rules import Rule

    return _rows(Rule, {}, defaults=True)


def study() -> str:
    """Every field of a study's file."""
    from deltamend.evaluation.suite import SuiteTask
    from deltamend.recipes.regime import Regime
    from deltamend.repairing.rules import Rule
    from deltamend.study import config, exam_config, repair_config

    kinds = (
        config.Study, config.ModelEntry, config.Target, exam_config.Items, Regime, repair_config.Repair, Rule,
        exam_config.Exam, exam_config.GeneralPrompts, exam_config.GivenAnswers, SuiteTask, repair_config.OwnTexts,
        config.Choosing, config.Measure,
    )  # fmt: skip
    return _models(kinds, defaults=True)


def suite_task() -> str:
    """Every field of a benchmark in a suite's file."""
    from deltamend.evaluation.suite import SuiteTask

    return _rows(SuiteTask, {}, defaults=True)


def _models(kinds: Sequence[type[BaseModel]], *, defaults: bool) -> str:
    """A heading and a table for each model; a type that is one of them is a link to its table."""
    known = {kind: f"[{kind.__name__}](#{kind.__name__.lower()})" for kind in kinds}
    return "\n".join(
        f"### {kind.__name__}\n\n{_text(_unwrapped(kind.__doc__ or ''))}\n\n{_rows(kind, known, defaults=defaults)}"
        for kind in kinds
    )


def _rows(kind: type[BaseModel], known: dict[Any, str], *, defaults: bool) -> str:
    """The table of a model's fields."""
    heads = ["field", "type", *(["default"] if defaults else []), "meaning"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, field in kind.model_fields.items():
        default = [_default(field)] if defaults else []
        meaning = _text(field.description or "")
        lines.append(f"| {' | '.join([f'`{name}`', _type(field.annotation, known), *default, meaning])} |")
    return "\n".join([*lines, ""])


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    if isinstance(value, BaseModel):
        return "its defaults"
    if value in ((), {}):
        return "empty"
    return "none" if value is None else _code(str(value).lower() if isinstance(value, bool) else str(value))


def _type(annotation: Any, known: dict[Any, str]) -> str:
    """A type in words."""
    words = {
        str: "text",
        int: "integer",
        float: "number",
        bool: "boolean",
        type(None): "none",
        Any: "any",
        object: "any",
    }
    if annotation in known:
        return known[annotation]
    if isinstance(annotation, type) and annotation in words:
        return words[annotation]
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(_code(str(part)) for part in parts)
    if origin is Annotated:
        return _type(parts[0], known)
    if origin is tuple:
        inner = dict.fromkeys(_type(part, known) for part in parts if part is not Ellipsis)
        return f"list of {'' if Ellipsis in parts else f'{len(parts)} × '}{', '.join(inner)}"
    if origin is dict:
        return f"mapping of {_type(parts[0], known)} to {_type(parts[1], known)}"
    if parts:
        return " or ".join(_type(part, known) for part in parts)
    return words.get(annotation, _text(getattr(annotation, "__name__", str(annotation))))


GENERATORS: dict[str, Callable[[], str]] = {
    "commands": commands,
    "python-api": python_api,
    "deltamend.json": manifest,
    "repair-options": repair_options,
    "rule": rule,
    "study": study,
    "suite-task": suite_task,
}
