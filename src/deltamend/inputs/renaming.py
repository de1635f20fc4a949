"""Show BASE under FINETUNED's names, where the two call the same tensors differently."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from deltamend.checkpoint.checkpoint_folder import Checkpoint, ComputedTensor, StoredTensor
from deltamend.errors import PairingError, UsageError, option
from deltamend.inputs.computed_tensors import EntrySpan
from deltamend.inputs.name_rules import SAME, WRAPPERS, NameMatch, NamePair, NameRule, Shapes, match_names, plain_names
from deltamend.inputs.weight_samples import Values, is_related, sample_of

_ASKED = 4
"""From how many matrices a rule's evidence is taken."""


@dataclass(frozen=True)
class Renaming:
    """Under which names the tensors of BASE are shown.

    Attributes:
        shown: the tensors of BASE by the names that they have in FINETUNED.
        notes: what was found, a sentence a rule.
    """

    shown: dict[str, StoredTensor]
    notes: tuple[str, ...]


def rename_base(base: Checkpoint, finetuned: Checkpoint, given: Sequence[str] = ()) -> None:
    """Show BASE's tensors under FINETUNED's names; where both have the same names, BASE stays as it is.

    Args:
        base: what is shown under other names; its notes say by which rules.
        finetuned: stays as it is.
        given: rules `OLD=NEW`: a prefix in BASE and what it is in FINETUNED. What they leave is matched by `match_names`.

    Raises:
        PairingError: the names match in several ways, or two tensors get one name.
        UsageError: a given rule is not written like OLD=NEW, or matches nothing.
    """
    renaming = find_renaming(base.tensors, finetuned.tensors, given, (base.values, finetuned.values))
    if renaming is None:
        return
    computed: dict[StoredTensor, ComputedTensor] = {}
    for shown in renaming.shown.values():
        held = base.tensors.get(shown.own_name)
        if held is not None and shown != held and base.is_computed(held):
            computed[shown] = EntrySpan(base, held)
    base.present(renaming.shown, computed, renaming.notes)


def find_renaming(
    base: Mapping[str, StoredTensor],
    finetuned: Mapping[str, StoredTensor],
    given: Sequence[str],
    values: tuple[Values, Values] | None,
) -> Renaming | None:
    """Find the names of BASE's tensors in FINETUNED; see `rename_base` for the rules and the errors.

    Args:
        base: the tensors of BASE.
        finetuned: those of FINETUNED.
        given: rules `OLD=NEW`.
        values: read BASE and FINETUNED, to tell which of several possible rules is right; None where they cannot be read.

    Returns:
        None if every tensor of BASE is shown under its own name.
    """
    ours, theirs = _matrices(base), _matrices(finetuned)
    rules = [_given_rule(text) for text in given]
    evidence = None if values is None else _evidence(base, finetuned, values)
    match = match_names(ours, theirs, rules, evidence)
    used = {rule for rule, _ in match.rules}
    for text, rule in zip(given, rules, strict=True):
        if rule not in used:
            raise UsageError(
                f"{option('rename')}: {text!r} gives no matrix of BASE a name and shape that FINETUNED has; compare the names "
                "of both with `deltamend inspect`"
            )
    names = _names_of_all(base, finetuned, match)
    _refuse_doubled(names, base, rules)
    if all(name == shown for name, shown in names.items()):
        return None
    shown = {
        new: base[name] if new == name else replace(base[name], name=new, origin=base[name].own_name)
        for name, new in names.items()
    }
    return Renaming(shown, _notes(match, len(theirs)))


def _notes(match: NameMatch, matrices: int) -> tuple[str, ...]:
    notes = [
        f"BASE's {rule.old!r} is FINETUNED's {rule.new!r}: {count} of {matrices} matrices get a partner this way"
        for rule, count in match.rules
        if rule != SAME
    ]
    ours, theirs = plain_names(match.pairs), plain_names(match.pairs.values())
    wrapped = [name for name, plain in [*ours.items(), *theirs.items()] if name != plain]
    if wrapped:
        notes.append(
            f"names are compared without the parts that wrappers such as torch.compile and FSDP put into them, as in {wrapped[0]!r}"
        )
    return tuple(notes)


def _given_rule(given: str) -> NameRule:
    old, separator, new = given.partition("=")
    if not separator:
        raise UsageError(
            f"{option('rename')}: {given!r} is not of the form OLD=NEW; write it like "
            f"{option('rename', 'model.=language_model.model.')}"
        )
    return NameRule(old, new)


def _names_of_all(
    base: Mapping[str, StoredTensor], finetuned: Mapping[str, StoredTensor], match: NameMatch
) -> dict[str, str]:
    """The name under which each tensor of BASE is shown: matrices by the match, everything else by its rules."""
    plain_ours, named = plain_names(base), {plain: name for name, plain in plain_names(finetuned).items()}
    wrapped = _wrapped_prefixes(named)
    names = dict(match.pairs)
    taken = set(names.values())
    for name, tensor in base.items():
        if name in names:
            continue
        own = plain_ours[name]
        rules = [*match.rules_for(own), SAME]
        wanted = [rule.new + own.removeprefix(rule.old) for rule in rules]
        partners = [named[plain] for plain in wanted if plain in named and named[plain] not in taken]
        fitting = [partner for partner in partners if finetuned[partner].shape == tensor.shape] or partners
        # A tensor without a partner goes by the same rule, so that stacked experts find the layer they belong to.
        spelled = _with_wrappers(wanted[0], wrapped)
        alone = next((new for new in (spelled, name) if new not in taken and new not in finetuned), None)
        found = fitting[0] if fitting else alone
        if found is None:
            found = f"{name} (in BASE)"
        names[name] = found
        taken.add(found)
    return {name: names[name] for name in base}


def _wrapped_prefixes(named: Mapping[str, str]) -> dict[str, str]:
    """The beginnings of names that have wrappers in them, by the same without."""
    found: dict[str, str] = {}
    for plain, name in named.items():
        if plain == name:
            continue
        short: list[str] = []
        for place, part in enumerate(name.split(".")):
            if part not in WRAPPERS:
                short.append(part)
                found[".".join(short)] = ".".join(name.split(".")[: place + 1])
    return {plain: name for plain, name in found.items() if plain != name}


def _with_wrappers(plain: str, wrapped: Mapping[str, str]) -> str:
    """A name with the wrappers that FINETUNED puts into the names of the same modules."""
    parts = plain.split(".")
    for length in range(len(parts), 0, -1) if wrapped else ():
        start = wrapped.get(".".join(parts[:length]))
        if start is not None:
            return ".".join([start, *parts[length:]])
    return plain


def _refuse_doubled(names: Mapping[str, str], base: Mapping[str, StoredTensor], rules: Sequence[NameRule]) -> None:
    """Refuse given rules that give a tensor the name that another tensor of BASE has already."""
    for rule in rules:
        for name in base:
            new = rule.new + name.removeprefix(rule.old)
            doubled = new in base and not any(new.startswith(other.old) for other in rules)
            if name.startswith(rule.old) and names[name] == new != name and doubled:
                raise PairingError(
                    f"two tensors of BASE would both be renamed to {new!r}; give another {option('rename', 'OLD=NEW')}"
                )


def _matrices(tensors: Mapping[str, StoredTensor]) -> Shapes:
    return {name: tensor.shape for name, tensor in tensors.items() if len(tensor.shape) >= 2}


def _evidence(
    base: Mapping[str, StoredTensor], finetuned: Mapping[str, StoredTensor], values: tuple[Values, Values]
) -> Callable[[Sequence[NamePair]], bool | None]:
    """What the values say about pairs of names, from the first, the last and some between."""

    def says(pairs: Sequence[NamePair]) -> bool | None:
        places = sorted({round(place * (len(pairs) - 1) / (_ASKED - 1)) for place in range(_ASKED)})
        samples = []
        for ours, theirs in (pairs[place] for place in places):
            tensors = base[ours], finetuned[theirs]
            found = sample_of(tensors, values)
            if found is not None:
                samples.append(found)
        return is_related(samples)

    return says
