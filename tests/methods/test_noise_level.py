"""The noise level of a spectral method."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import deltamend
from deltamend.spectrum.noise import rounding_variance
from tests.methods.spectra import NAME, pair


def test_the_rounding_floor_is_that_of_the_stored_dtype() -> None:
    base, update = pair((60, 40))
    ours = {NAME: torch.from_numpy(base).bfloat16()}
    theirs = {NAME: torch.from_numpy(base + update).bfloat16()}
    out = deltamend.repair_state_dict(ours, theirs, parameters={"noise": "rounding-floor"}, out_dtype="fp32")
    floor = np.sqrt(rounding_variance(theirs[NAME].float().numpy(), "bfloat16").mean())
    found = out.records[NAME].spectrum
    assert found is not None
    assert found.noise == pytest.approx(floor, rel=1e-6)
