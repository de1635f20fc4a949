"""Find how the names of two models' tensors belong together: rules for their prefixes, each for a part of the names."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from deltamend.errors import PairingError, option

Shapes = Mapping[str, tuple[int, ...]]
"""The shapes of the matrices of one model, by name."""

WRAPPERS = frozenset({
    "_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module", "base_layer",
})  # fmt: skip
"""Parts that torch.compile, DDP, FSDP, activation checkpointing, Lightning and PEFT put into the names of what they wrap."""


class NameRule(NamedTuple):
    """Names that begin with `old` in BASE begin with `new` in FINETUNED; both end with a dot or are empty."""

    old: str
    new: str


SAME = NameRule("", "")
"""The rule of names that are the same on both sides."""

NamePair = tuple[str, str]
"""The name of a tensor in BASE, and that of its partner in FINETUNED."""

Evidence = Callable[[Sequence[NamePair]], bool | None]
"""Whether the values of some pairs say that one comes from the other; None where they do not tell."""


@dataclass(frozen=True)
class NameMatch:
    """Which matrices of BASE and FINETUNED belong together by their names.

    Attributes:
        pairs: the name in FINETUNED, by the name in BASE.
        rules: every rule that was used, with the number of matrices that it pairs, in the order in which they were found.
    """

    pairs: Mapping[str, str]
    rules: tuple[tuple[NameRule, int], ...]

    def rules_for(self, plain: str) -> list[NameRule]:
        """The rules that fit a name of BASE without its wrappers: the longest prefix first, then the most used."""
        order = {rule: number for number, (rule, _) in enumerate(self.rules)}
        fitting = [rule for rule in order if plain.startswith(rule.old)]
        return sorted(fitting, key=lambda rule: (-len(rule.old), order[rule]))


def plain_names(names: Iterable[str]) -> dict[str, str]:
    """Each name without the parts of `WRAPPERS`; a name stays as it is where another would become the same."""
    found = {name: ".".join(part for part in name.split(".") if part not in WRAPPERS) for name in names}
    count = Counter(found.values())
    return {name: name if count[plain] > 1 or not plain else plain for name, plain in found.items()}


def match_names(ours: Shapes, theirs: Shapes, given: Sequence[NameRule], evidence: Evidence | None) -> NameMatch:
    """Find the rules by which names of BASE become names of FINETUNED, and with them the pairs of matrices.

    Two names can belong together if they end alike from the number of the layer on (or in their last two parts), and the
    matrices have as many columns; what stands before is then a rule. The rule that pairs the most matrices is taken first,
    then the one that pairs the most of those that are left, and so on. Names that are the same win a tie. Between rules
    that exclude each other the values decide where they can.

    Args:
        ours: the matrices of BASE.
        theirs: the matrices of FINETUNED.
        given: rules that are taken before all others.
        evidence: asked about the values of some matrices; None where they cannot be read.

    Raises:
        PairingError: two rules pair equally many matrices in different ways, and the values do not tell which is right.

    Source: ours.
    """
    search = _Search(ours, theirs, evidence)
    for rule in given:
        search.take(rule, _pairs_by(rule, ours, search.plain_theirs))
    while search.take_best():
        pass
    search.take_doubted()
    return NameMatch(search.pairs, tuple(search.rules))


def _pairs_by(rule: NameRule, ours: Iterable[str], plain_theirs: Mapping[str, str]) -> list[NamePair]:
    """The pairs that a given rule makes, whose OLD may be written with wrappers or without."""
    named = {plain: name for name, plain in plain_theirs.items()}
    pairs = []
    for name, plain in plain_names(ours).items():
        for form in (name, plain):
            if form.startswith(rule.old):
                wanted = rule.new + form.removeprefix(rule.old)
                partner = wanted if wanted in plain_theirs else named.get(_without_wrappers(wanted))
                if partner is not None:
                    pairs.append((name, partner))
                    break
    return pairs


def _without_wrappers(name: str) -> str:
    return next(iter(plain_names([name]).values()))


class _Search:
    """The state of a search: which names have a partner by now, and which rules remain for the others."""

    def __init__(self, ours: Shapes, theirs: Shapes, evidence: Evidence | None) -> None:
        self.pairs: dict[str, str] = {}
        self.rules: list[tuple[NameRule, int]] = []
        self.plain_theirs = plain_names(theirs)
        self._taken: set[str] = set()
        self._doubted: dict[NameRule, list[NamePair]] = {}
        self._evidence = evidence
        self._shapes = (ours, theirs)
        self._open = _candidates(ours, theirs, self.plain_theirs)

    def take(self, rule: NameRule, pairs: Sequence[NamePair]) -> None:
        """Use a rule for all of its pairs whose names have no partner yet."""
        ours, theirs = self._shapes
        own = [(b, f) for b, f in pairs if b not in self.pairs and f not in self._taken]
        own = [(b, f) for b, f in own if ours[b][1:] == theirs[f][1:]]
        self.pairs.update(own)
        self._taken.update(f for _, f in own)
        if own:
            self.rules.append((rule, len(own)))
        self._open.pop(rule, None)
        left = {
            other: [(b, f) for b, f in pairs if b not in self.pairs and f not in self._taken]
            for other, pairs in self._open.items()
        }
        self._open = {other: pairs for other, pairs in left.items() if pairs}

    def take_best(self) -> bool:
        """Use the best rule of those that remain; False where none does."""
        if not self._open:
            return False
        order = sorted(
            self._open, key=lambda rule: (-len(self._open[rule]), rule != SAME, len(rule.old + rule.new), rule)
        )
        best = order[0]
        rivals = [rule for rule in order[1:] if self._exclude(best, rule)]
        if rivals:
            best = self._best_of([best, *rivals])
        if best != SAME and self._says(best) is False:
            self._doubted[best] = self._open.pop(best)
            return True
        self.take(best, self._open[best])
        return True

    def take_doubted(self) -> None:
        """Use the rules whose values are unlike each other, where no other rule pairs values that are alike.

        Then FINETUNED does not come from BASE at all, and the error should say that, and not that names do not match.
        """
        if self._doubted and not (self.pairs and self._evidence is not None and self._evidence([*self.pairs.items()])):
            for rule, pairs in self._doubted.items():
                self.take(rule, pairs)

    def _best_of(self, rules: list[NameRule]) -> NameRule:
        """The rule to use of several that exclude each other; the first of them pairs the most matrices."""
        said = {rule: self._says(rule) for rule in rules}
        likely = [rule for rule in rules if said[rule]] or rules
        best, count = likely[0], len(self._open[likely[0]])
        equal = [rule for rule in likely[1:] if len(self._open[rule]) == count and self._exclude(best, rule)]
        if equal and best != SAME:
            written = ", ".join(f"{rule.old}={rule.new}" for rule in sorted([best, *equal]))
            raise PairingError(
                f"the tensor names of BASE match those of FINETUNED in several ways ({written}); choose one with "
                f"{option('rename', 'OLD=NEW')}"
            )
        return best

    def _says(self, rule: NameRule) -> bool | None:
        return None if self._evidence is None else self._evidence(self._open[rule])

    def _exclude(self, one: NameRule, other: NameRule) -> bool:
        """Whether two rules give a name different partners."""
        pairs = self._open[one]
        partner, owner = dict(pairs), {f: b for b, f in pairs}
        return any(partner.get(b, f) != f or owner.get(f, b) != b for b, f in self._open[other])


def _candidates(ours: Shapes, theirs: Shapes, plain_theirs: Mapping[str, str]) -> dict[NameRule, list[NamePair]]:
    """All rules by which a matrix of BASE could belong to one of FINETUNED, with their pairs."""
    by_ending: dict[str, list[NamePair]] = defaultdict(list)
    for name, plain in plain_names(ours).items():
        by_ending[_ending(plain)].append((name, plain))
    found: dict[NameRule, list[NamePair]] = defaultdict(list)
    for name, plain in plain_theirs.items():
        for own, own_plain in by_ending[_ending(plain)]:
            if ours[own][1:] == theirs[name][1:]:
                found[_rule_between(own_plain, plain)].append((own, name))
    return dict(found)


def _ending(plain: str) -> str:
    """What two names must have in common: all from the first number on, or the last two parts where there is no number.

    A number that a name begins with is that of a module of a pipeline, and not of a layer. Heads have two names, as GPT-NeoX's
    before transformers 5 and since.
    """
    parts = ["lm_head" if part == "embed_out" else part for part in plain.split(".")]
    number = next((place for place, part in enumerate(parts) if place and part.isdigit()), None)
    return ".".join(parts[-2:] if number is None else parts[number:])


def _rule_between(own: str, name: str) -> NameRule:
    """The two prefixes that remain of two names without what they end with alike."""
    ours, theirs = own.split("."), name.split(".")
    shared = 0
    while shared < min(len(ours), len(theirs)) and ours[-1 - shared] == theirs[-1 - shared]:
        shared += 1
    return NameRule(*("".join(f"{part}." for part in parts[: len(parts) - shared]) for parts in (ours, theirs)))
