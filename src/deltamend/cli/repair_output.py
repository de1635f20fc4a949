"""What `deltamend repair` prints: the plan of a dry run, and the report of a repair."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.table import Column, Table

from deltamend.checkpoint.file_names import ADAPTER_FILE
from deltamend.cli.options import spelled_on_command_line
from deltamend.errors import spell
from deltamend.repairing.plan import RepairPlan
from deltamend.repairing.repair_report import RepairReport, rounding_warning


def print_plan(console: Console, plan: RepairPlan, workers: int, verbose: int) -> None:
    """What would be done: tensors, what is kept and why, files, bytes, time and memory."""
    filtered = [pair for pair in plan.pairing.pairs if pair.action == "filter"]
    matrices = sum(len(pair.shapes) for pair in filtered if pair.is_matrix)
    vectors = sum(not pair.is_matrix for pair in filtered)
    also = f" and {vectors} other tensors" if vectors else ""
    console.print(
        f"{plan.method.name} on {matrices} matrices{also} of {len(plan.pairing.pairs)} tensors; nothing is written"
    )
    for note in plan.notes:
        console.print(f"  {note}")
    kept = Counter(pair.reason for pair in plan.pairing.pairs if pair.action == "keep")
    for reason, count in sorted(kept.items()):
        console.print(f"  {count} kept as fine-tuned: {reason}")
    _print_left_out(console, plan.pairing.only_in_base, [(file.name, file.reason) for file in plan.left_out])
    if verbose:
        for pair in plan.pairing.pairs:
            shape = "×".join(str(size) for size in pair.finetuned.shape)
            console.print(f"  {pair.action} {pair.name} [{shape}] {pair.reason}".rstrip())
    estimate = plan.estimate(workers)
    written = f"{plan.bytes_to_write / 1e6:,.0f} MB in {len(plan.layout.shards)} weight file(s)"
    if plan.adapter is not None:
        written = "an adapter, whose size depends on the ranks,"
    console.print(
        f"would write {written} and {len(plan.sidecars)} others; "
        f"about {max(1, round(estimate.seconds))} s and {estimate.memory_bytes / 2**30:.1f} GiB with {workers} worker(s)"
    )


def _print_left_out(console: Console, only_in_base: Sequence[str], files: Sequence[tuple[str, str]]) -> None:
    for name in only_in_base:
        console.print(f"  only in BASE, left out: {name}")
    for name, reason in files:
        console.print(f"  file left out ({reason}): {name}")


def print_report(console: Console, report: RepairReport, verbose: int) -> None:
    """Print what was done over all, what was left out, and what rounding spoiled."""
    manifest = report.manifest
    for note in manifest.notes:
        console.print(f"  {note}")
    _print_left_out(console, manifest.only_in_base, [(file.name, file.reason) for file in manifest.left_out])
    if verbose:
        table = Table(Column("tensor", overflow="fold"), "outcome", "rank", "energy kept", "lost in cast", "s")
        for tensor in report.tensors:
            rank = "" if tensor.spectrum is None else f"{tensor.spectrum.rank}/{tensor.spectrum.full_rank}"
            energy, lost = _percent(tensor.kept_energy), _percent(tensor.realised_error)
            table.add_row(tensor.name, tensor.outcome, rank, energy, lost, f"{tensor.seconds:.2f}")
        console.print(table)
    outcomes = Counter(tensor.outcome for tensor in report.tensors)
    console.print(", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common()))
    console.print(
        f"kept {_percent(report.kept_energy)} of the update's energy; rounding to the stored dtype changed {_percent(report.realised_error)} of it"
    )
    if (warning := rounding_warning(manifest)) is not None:
        console.print(f"warning: {spell(warning, spelled_on_command_line)}")
    if manifest.is_adapter:
        size = sum(file.size for file in manifest.files if file.name == ADAPTER_FILE)
        whole = sum(file.size for file in manifest.finetuned.files)
        console.print(f"{size / 1e6:,.1f} MB as an adapter, {whole / 1e6:,.1f} MB as FINETUNED's checkpoint")
    failed = [tensor.name for tensor in report.tensors if tensor.outcome == "no-noise-floor"]
    if failed:
        console.print(
            f"{len(failed)} matrices have no measurable noise floor and were kept as fine-tuned, the first: {failed[0]}"
        )
    done = (
        f"wrote {report.out} in {manifest.run.seconds:.1f} s" if report.written else f"{report.out} was whole already"
    )
    console.print(done)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f} %"
