from __future__ import annotations

from pathlib import Path

from deltamend.study.records import base_file


def test_a_device_of_any_name_stays_in_its_folder(tmp_path: Path) -> None:
    assert base_file(tmp_path, "m", "t", "../../x").parent == tmp_path / "bases"
    assert base_file(tmp_path, "m", "t", "cuda").name == "m__t__cuda.json.xz"
