"""Find the prefix by which the names of BASE and FINETUNED differ, and show BASE under FINETUNED's names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from deltamend.checkpoint.checkpoint_folder import Checkpoint, ComputedTensor, StoredTensor
from deltamend.errors import PairingError, UsageError, option
from deltamend.inputs.computed_tensors import EntrySpan

_Shapes = Mapping[str, tuple[int, ...]]
_Rule = tuple[str, str]

# What models are wrapped in: multimodal ones around their text part, and the head around the body.
_PREFIXES = (
    "", "model.", "language_model.", "language_model.model.", "model.language_model.", "text_model.", "transformer.", "module.",
)  # fmt: skip


def rename_base(base: Checkpoint, finetuned: Checkpoint, given: str | None) -> None:
    """Show BASE's tensors under FINETUNED's names where only a prefix differs; otherwise leave BASE as it is.

    Args:
        base: what is shown under other names; its notes say which prefix was replaced.
        finetuned: stays as it is.
        given: `OLD=NEW`, a prefix in BASE and what it is in FINETUNED; None tries the prefixes that models are wrapped in.

    Raises:
        PairingError: two pairs of prefixes match equally many matrices in different ways, or two tensors get one name.
        UsageError: `given` is not written like OLD=NEW, or matches nothing.
    """
    rule = prefix_rule(base.tensors, finetuned.tensors, given)
    if rule is not None:
        _show_renamed(base, rule, rule_note(base.tensors, finetuned.tensors, rule))


def rule_note(base: Mapping[str, StoredTensor], finetuned: Mapping[str, StoredTensor], rule: _Rule) -> str:
    """What a rule of `prefix_rule` means, and how many matrices it pairs, as one sentence for a person."""
    ours, theirs = _matrices(base), _matrices(finetuned)
    count = _matched(ours, theirs, rule)
    return f"BASE's {rule[0]!r} is FINETUNED's {rule[1]!r}: {count} of {len(theirs)} matrices get a partner this way"


def prefix_rule(
    base: Mapping[str, StoredTensor], finetuned: Mapping[str, StoredTensor], given: str | None
) -> _Rule | None:
    """Which prefix of names in BASE stands for which in FINETUNED; see `rename_base` for arguments and errors.

    Returns:
        (OLD, NEW); None where as many matrices have the same name on both sides as would have by any rule.
    """
    ours, theirs = _matrices(base), _matrices(finetuned)
    return _found_rule(ours, theirs) if given is None else _given_rule(given, ours, theirs)


def _given_rule(given: str, ours: _Shapes, theirs: _Shapes) -> _Rule:
    old, separator, new = given.partition("=")
    if not separator:
        raise UsageError(
            f"{option('rename')}: {given!r} is not of the form OLD=NEW; write it like "
            f"{option('rename', 'model.=language_model.model.')}"
        )
    if not _matched(ours, theirs, (old, new)):
        raise UsageError(
            f"{option('rename')}: {given!r} gives no matrix of BASE a name and shape that FINETUNED has; compare the names of "
            "both with `deltamend inspect`"
        )
    return old, new


def _found_rule(ours: _Shapes, theirs: _Shapes) -> _Rule | None:
    """The pair of known prefixes that matches the most matrices; None where the names as they are match as many."""
    scores = {(old, new): _matched(ours, theirs, (old, new)) for old in _PREFIXES for new in _PREFIXES if old != new}
    top = max(scores.values())
    if top <= _matched(ours, theirs, ("", "")):
        return None
    winners = [rule for rule, score in scores.items() if score == top]
    # A longer pair of prefixes with the same ending says the same; the shortest is the rule.
    best = min(winners, key=lambda rule: (len(rule[0]) + len(rule[1]), rule))
    mappings = [{name: renamed(name, rule) for name in ours if renamed(name, rule) in theirs} for rule in winners]
    if any(mapping != mappings[winners.index(best)] for mapping in mappings):
        written = ", ".join(f"{old}={new}" for old, new in sorted(winners))
        raise PairingError(
            f"the tensor names of BASE match those of FINETUNED in several ways ({written}); choose one with {option('rename', 'OLD=NEW')}"
        )
    return best


def _show_renamed(base: Checkpoint, rule: _Rule, note: str) -> None:
    tensors: dict[str, StoredTensor] = {}
    computed: dict[StoredTensor, ComputedTensor] = {}
    for tensor in base.tensors.values():
        shown = replace(tensor, name=renamed(tensor.name, rule), origin=tensor.own_name)
        if shown.name in tensors:
            raise PairingError(
                f"two tensors of BASE would both be renamed to {shown.name!r}; give another {option('rename', 'OLD=NEW')}"
            )
        tensors[shown.name] = shown
        if shown != tensor and base.is_computed(tensor):
            computed[shown] = EntrySpan(base, tensor)
    base.present(tensors, computed, [note])


def _matrices(tensors: Mapping[str, StoredTensor]) -> _Shapes:
    return {name: tensor.shape for name, tensor in tensors.items() if len(tensor.shape) >= 2}


def _matched(ours: _Shapes, theirs: _Shapes, rule: _Rule) -> int:
    """How many matrices of BASE get a partner in FINETUNED of the same name and number of columns."""
    return sum(
        shape[1:] == theirs.get(renamed(name, rule), ())[1:] and renamed(name, rule) in theirs
        for name, shape in ours.items()
    )


def renamed(name: str, rule: _Rule) -> str:
    """The name of a tensor of BASE by a rule of `prefix_rule`."""
    old, new = rule
    return new + name.removeprefix(old) if name.startswith(old) else name
