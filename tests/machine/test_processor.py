"""bf16 arithmetic is used only where it is not many times slower than fp32."""

from __future__ import annotations

import time

import pytest
import torch

from deltamend.evaluation.backend import BackendOptions
from deltamend.machine import processor
from deltamend.machine.processor import computes_in_bf16


def test_bf16_is_claimed_only_where_it_is_not_much_slower() -> None:
    left, right = torch.randn(256, 512), torch.randn(512, 512)

    def seconds(dtype: torch.dtype) -> float:
        one, two = left.to(dtype), right.to(dtype)
        times = []
        for _ in range(5):
            started = time.perf_counter()
            one @ two
            times.append(time.perf_counter() - started)
        return min(times)

    assert not computes_in_bf16() or seconds(torch.bfloat16) < 10 * seconds(torch.float32)


@pytest.mark.parametrize(
    ("has_bf16", "given", "computed"),
    [
        (True, "auto", "auto"),
        (False, "auto", "float32"),
        (False, "bfloat16", "bfloat16"),
        (False, "float16", "float16"),
    ],
)
def test_stored_bf16_is_computed_in_fp32_where_the_cpu_has_none(
    monkeypatch: pytest.MonkeyPatch, has_bf16: bool, given: str, computed: str
) -> None:
    monkeypatch.setattr("deltamend.evaluation.backend.computes_in_bf16", lambda: has_bf16)

    assert BackendOptions(device="cpu", dtype=given).computed_dtype == computed


def test_other_devices_and_backends_keep_the_stored_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deltamend.evaluation.backend.computes_in_bf16", lambda: False)

    assert BackendOptions(device="cuda:0").computed_dtype == "auto"
    assert BackendOptions(name="vllm", device="cpu").computed_dtype == "auto"


def test_a_torch_without_onednn_has_no_fast_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoOneDNN:
        @property
        def mkldnn(self) -> None:
            raise AttributeError("no oneDNN")

    monkeypatch.setattr(torch, "ops", NoOneDNN())

    assert not processor.computes_in_bf16()
