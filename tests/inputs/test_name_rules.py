"""Names of two models that belong together: prefixes, several at once, and the parts that wrappers put in."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from deltamend.errors import PairingError
from deltamend.inputs.name_rules import NameMatch, NameRule, Shapes, match_names, plain_names

Names = dict[str, tuple[int, ...]]

TEXT: Names = {
    "embed_tokens.weight": (160, 32),
    **{
        f"layers.{layer}.{name}.weight": shape
        for layer in range(3)
        for name, shape in (("self_attn.q_proj", (32, 32)), ("self_attn.k_proj", (16, 32)), ("mlp.up_proj", (48, 32)))
    },
}
VISION: Names = {
    f"vision_model.encoder.layers.{layer}.{name}.weight": shape
    for layer in range(4)
    for name, shape in (("self_attn.q_proj", (32, 32)), ("mlp.fc1", (48, 32)), ("mlp.fc2", (32, 48)))
}


def under(prefix: str, names: Names) -> Names:
    return {prefix + name: shape for name, shape in names.items()}


def pairs(ours: Shapes, theirs: Shapes, *given: tuple[str, str]) -> NameMatch:
    return match_names(ours, theirs, [NameRule(*rule) for rule in given], None)


CHANGES: dict[str, tuple[Names, Callable[[str], str]]] = {
    "same": (TEXT, lambda name: name),
    "a head around the body": (under("model.", TEXT) | {"lm_head.weight": (160, 32)}, lambda name: name),
    "embedding model": (under("model.", TEXT), lambda name: name.removeprefix("model.")),
    "unknown prefix": (TEXT, lambda name: f"odd.thing.{name}"),
    "PaliGemma before and after transformers 4.52": (
        under("language_model.model.", TEXT)
        | under("vision_tower.", VISION)
        | {"multi_modal_projector.linear.weight": (32, 32), "language_model.lm_head.weight": (160, 32)},
        lambda name: (
            "lm_head.weight"
            if "lm_head" in name
            else "model." + name.replace("language_model.model.", "language_model.")
        ),
    ),
    "Qwen2.5-VL before and after": (
        under("model.", TEXT) | under("visual.", VISION) | {"lm_head.weight": (160, 32)},
        lambda name: {"m": "model.language_model." + name[6:], "v": f"model.{name}", "l": name}[name[0]],
    ),
    "torch.compile in every layer": (
        under("model.", TEXT),
        lambda name: name.replace("layers.0.", "layers.0._orig_mod.").replace("layers.2.", "layers.2._orig_mod."),
    ),
    "DDP, FSDP and checkpointing": (
        under("model.", TEXT),
        lambda name: "module." + name.replace("self_attn.", "self_attn._fsdp_wrapped_module._checkpoint_wrapped_module."),
    ),
    "a pipeline's number in front": (TEXT, lambda name: f"0.auto_model.{name}"),
    "h for layers": (under("model.", TEXT), lambda name: name.replace("model.layers.", "transformer.h.")),
}  # fmt: skip


@pytest.mark.parametrize("swapped", [False, True], ids=["", "swapped"])
@pytest.mark.parametrize("case", CHANGES)
def test_every_matrix_finds_its_partner_from_either_side(case: str, swapped: bool) -> None:
    ours, change = CHANGES[case]
    right = {name: change(name) for name in ours}
    theirs = {right[name]: shape for name, shape in ours.items()}
    if swapped:
        ours, theirs, right = theirs, ours, {new: old for old, new in right.items()}
    assert pairs(ours, theirs).pairs == right


def test_the_rules_say_how_many_matrices_each_of_them_pairs() -> None:
    ours, change = CHANGES["PaliGemma before and after transformers 4.52"]
    found = pairs(ours, {change(name): shape for name, shape in ours.items()})
    assert found.rules == (
        (NameRule("", "model."), 13),
        (NameRule("language_model.model.", "model.language_model."), 10),
        (NameRule("language_model.", ""), 1),
    )


def test_what_only_one_side_has_stays_alone() -> None:
    ours = under("model.", TEXT) | {"lm_head.weight": (160, 32)}
    theirs = under("model.", TEXT) | {"score.weight": (1, 32), "visual.blocks.0.attn.qkv.weight": (96, 32)}
    assert pairs(ours, theirs).pairs == {name: name for name in under("model.", TEXT)}


def test_a_matrix_of_another_width_is_no_partner() -> None:
    theirs: Names = {name: (shape[0], 2 * shape[1]) for name, shape in TEXT.items()}
    assert pairs(TEXT, under("model.", theirs)).pairs == {}


def two_towers() -> tuple[Names, Names]:
    return under("thinker.", TEXT) | under("talker.", TEXT), TEXT


def test_two_rules_that_are_equally_good_are_an_error_that_names_them() -> None:
    with pytest.raises(PairingError, match=r"several ways \(talker\.=, thinker\.=\); choose one with rename"):
        pairs(*two_towers())


def test_a_given_rule_ends_the_doubt_and_the_rest_is_still_found() -> None:
    ours, theirs = two_towers()
    ours, theirs = ours | under("visual.", VISION), theirs | under("model.visual.", VISION)
    found = pairs(ours, theirs, ("thinker.", ""))
    assert found.pairs == {f"thinker.{name}": name for name in TEXT} | {
        f"visual.{name}": f"model.visual.{name}" for name in VISION
    }


def test_several_rules_may_be_given() -> None:
    ours = under("a.", TEXT) | under("b.", TEXT)
    theirs = under("c.", TEXT) | under("d.", TEXT)
    found = pairs(ours, theirs, ("a.", "d."), ("b.", "c."))
    assert found.pairs == {f"a.{name}": f"d.{name}" for name in TEXT} | {f"b.{name}": f"c.{name}" for name in TEXT}


@pytest.mark.parametrize("right", ["thinker.", "talker."])
def test_values_decide_between_rules_where_they_can(right: str) -> None:
    ours, theirs = two_towers()

    def evidence(asked: Sequence[tuple[str, str]]) -> bool:
        return all(name.startswith(right) for name, _ in asked)

    assert match_names(ours, theirs, (), evidence).pairs == {right + name: name for name in TEXT}


def test_a_rule_for_what_is_left_needs_values_that_do_not_speak_against_it() -> None:
    ours = under("model.", TEXT) | under("vision_tower.", VISION)
    theirs = under("model.", TEXT) | under("audio_tower.", VISION)
    alone = {name: name for name in under("model.", TEXT)}
    assert match_names(ours, theirs, (), lambda asked: all(own == name for own, name in asked)).pairs == alone
    assert match_names(ours, theirs, (), lambda _: None).pairs == alone | {
        f"vision_tower.{name}": f"audio_tower.{name}" for name in VISION
    }
    unrelated = match_names(ours, theirs, (), lambda _: False)
    assert len(unrelated.pairs) == len(ours), "the values are for the check of the parent to refuse"


def test_the_same_names_are_taken_before_any_other_rule() -> None:
    """The encoder and the decoder of one model have the same endings and shapes."""
    both = under("encoder.", TEXT) | under("decoder.", TEXT)
    assert pairs(both, both).pairs == {name: name for name in both}


def test_names_that_would_become_one_keep_their_wrappers() -> None:
    assert plain_names(["a.module.weight", "a.weight", "module.b.weight", "module"]) == {
        "a.module.weight": "a.module.weight",
        "a.weight": "a.weight",
        "module.b.weight": "b.weight",
        "module": "module",
    }


def test_a_head_has_another_name_since_transformers_5() -> None:
    assert pairs(
        {"embed_out.weight": (90, 16), **under("gpt_neox.", TEXT)},
        {"lm_head.weight": (90, 16), **under("gpt_neox.", TEXT)},
    ).pairs == {
        "embed_out.weight": "lm_head.weight",
        **{name: name for name in under("gpt_neox.", TEXT)},
    }
