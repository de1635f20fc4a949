"""OUT is refused where writing it would remove what is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import deltamend
from tests.conftest import llama, save_pair
from tests.reference import load


@pytest.mark.parametrize("what", ["mask", "gguf"])
def test_overwrite_never_removes_what_is_read(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = save_pair(llama(torch.float32), tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    if what == "mask":
        masks = {name: torch.ones_like(t, dtype=torch.uint8) for name, t in load(pair.base).items() if t.ndim == 2}
        save_file(masks, out / "mask")
        given: dict[str, Any] = {"method": "graft", "parameters": {"mask": str(out / "mask")}}
        base = pair.base
    else:
        base, given = out / "base.gguf", {}
        base.write_bytes(b"GGUF")
        monkeypatch.setattr("deltamend.inputs.gguf_file.unpacked", lambda _path: pair.base)
    with pytest.raises(deltamend.OutputError, match="OUT contains the input"):
        deltamend.repair(base, pair.finetuned, out, overwrite=True, **given)
    assert len(list(out.iterdir())) == 1
