"""Print the plan of a dry run and the report of a repair, for `deltamend repair`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.table import Column

from deltamend.checkpoint.file_names import ADAPTER_FILE
from deltamend.checkpoint.manifest import MORE_THAN_ALL
from deltamend.cli.options import spelled_on_command_line
from deltamend.cli.terminal import PlainConsole, PlainTable, counted
from deltamend.errors import spell
from deltamend.repairing.plan import RepairPlan
from deltamend.repairing.repair_report import (
    RepairReport,
    coverage_clause,
    nothing_changed_warning,
    rounding_warning,
)


def print_plan(console: PlainConsole, plan: RepairPlan, workers: int, verbose: int) -> None:
    """Print what a repair would do: the tensors, those that are kept and why, files, bytes, time and memory."""
    filtered = [pair for pair in plan.pairing.pairs if pair.action == "filter"]
    matrices = sum(len(pair.shapes) for pair in filtered if pair.is_matrix)
    vectors = sum(not pair.is_matrix for pair in filtered)
    also = f" and {counted(vectors, 'vector')}" if vectors else ""
    console.print(
        f"dry run, nothing is written: {plan.method.name} would repair {counted(matrices, 'matrix', 'matrices')}{also}; "
        f"FINETUNED has {counted(len(plan.pairing.pairs), 'tensor')}"
    )
    for note in plan.notes:
        console.print(f"  {note}")
    console.print(f"  {plan.pair.parent.sentence}")
    kept = Counter(pair.reason for pair in plan.pairing.pairs if pair.action == "keep")
    for reason, count in sorted(kept.items()):
        console.print(f"  {counted(count, 'tensor')} would be kept as fine-tuned: {reason}")
    _print_left_out(console, plan.pairing.only_in_base, [(file.name, file.reason) for file in plan.left_out])
    if verbose:
        for pair in plan.pairing.pairs:
            shape = "×".join(str(size) for size in pair.finetuned.shape)
            console.print(f"  {pair.action} {pair.name} [{shape}] {pair.reason}".rstrip())
    estimate = plan.estimate(workers)
    written = counted(len(plan.layout.shards), "weight file")
    size = f", {_megabytes(plan.bytes_to_write)} in all"
    if plan.adapter is not None:
        written, size = "an adapter, whose size depends on the ranks,", ""
    console.print(f"OUT would hold {written} and {counted(len(plan.sidecars), 'other file')}{size}")
    console.print(
        f"with {counted(workers, 'worker')} it would take about {max(1, round(estimate.seconds))} s and "
        f"{estimate.memory_bytes / 2**30:.1f} GiB of memory"
    )


def _print_left_out(console: PlainConsole, only_in_base: Sequence[str], files: Sequence[tuple[str, str]]) -> None:
    for name in only_in_base:
        console.print(f"  tensor left out, as it is only in BASE: {name}")
    for name, reason in files:
        console.print(f"  file left out ({reason}): {name}")


def print_report(console: PlainConsole, report: RepairReport, verbose: int) -> None:
    """Print what was done to the tensors, what was left out, and a warning if rounding undid part of the repair."""
    manifest = report.manifest
    for note in manifest.notes:
        console.print(f"  {note}")
    if manifest.parent is not None:
        console.print(f"  {manifest.parent.sentence}")
    _print_left_out(console, manifest.only_in_base, [(file.name, file.reason) for file in manifest.left_out])
    if verbose:
        table = PlainTable(
            Column("tensor", overflow="fold"), "outcome", "rank", "energy kept", "changed by rounding", "s"
        )
        for tensor in report.tensors:
            rank = "" if tensor.spectrum is None else f"{tensor.spectrum.rank}/{tensor.spectrum.full_rank}"
            energy, lost = _percent(tensor.kept_energy), _percent(tensor.realised_error)
            table.add_row(tensor.name, tensor.outcome, rank, energy, lost, f"{tensor.seconds:.2f}")
        console.print(table)
    outcomes = Counter(tensor.outcome for tensor in report.tensors)
    described = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common())
    console.print(f"{counted(len(report.tensors), 'tensor')}: {described}")
    grown = ", more than all of it, as it does not only shrink the update" if report.kept_energy > MORE_THAN_ALL else ""
    console.print(
        f"the method kept {_percent(report.kept_energy)} of the update's energy (‖Δ*‖²/‖Δ‖²){grown}"
        f"{coverage_clause(report.coverage)}; rounding changed the kept update by {_percent(report.realised_error)}"
    )
    if (warning := nothing_changed_warning(manifest) or rounding_warning(manifest)) is not None:
        console.print(f"warning: {spell(warning, spelled_on_command_line)}")
    if manifest.is_adapter:
        size = sum(file.size for file in manifest.files if file.name == ADAPTER_FILE)
        whole = sum(file.size for file in manifest.finetuned.files)
        console.print(f"the adapter takes {_megabytes(size)}, the weights of FINETUNED take {_megabytes(whole)}")
    failed = [tensor.name for tensor in report.tensors if tensor.outcome == "no-noise-floor"]
    if failed:
        console.print(
            f"kept as fine-tuned, because no noise floor could be measured: {counted(len(failed), 'matrix', 'matrices')}, "
            f"the first is {failed[0]}"
        )
    console.print(
        f"wrote {report.out} in {manifest.run.seconds:.1f} s"
        if report.written
        else f"{report.out} was already complete; nothing was written"
    )


def _megabytes(size: int) -> str:
    """A size in bytes as text in MB (10⁶ bytes), with enough digits for small files."""
    return f"{size / 1e6:,.0f} MB" if size >= 10e6 else f"{size / 1e6:.2g} MB"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f} %"
