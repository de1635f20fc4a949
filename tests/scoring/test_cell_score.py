from __future__ import annotations

from tests.scoring.records import made_up_cell
from tests.scoring.scored_records import scored


def test_what_is_undefined_is_named_and_has_no_interval() -> None:
    same = made_up_cell()
    found = scored({**same, "finetuned": same["base"]})
    good = found.methods["good"]
    assert good.healing.value is None
    assert good.healing.low is None
    assert "damaged no benchmark" in (good.healing.reason or "")
    assert "not better than the base" in (good.retention.reason or "")
    assert good.non_damage.value is not None
    assert any("nothing to heal" in note for note in found.notes)
    assert any("nothing to retain" in note for note in found.notes)
