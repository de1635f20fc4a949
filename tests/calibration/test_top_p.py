"""The tokens that are kept are those that transformers keeps."""

from __future__ import annotations

import pytest
import torch
from transformers import TopPLogitsWarper

from deltamend.calibration.top_p import keep_likeliest


@pytest.mark.parametrize("spread", [0.1, 1.0, 3.0, 10.0], ids=lambda spread: f"spread {spread}")
@pytest.mark.parametrize("vocabulary", [7, 5000, 20_000])
@pytest.mark.parametrize("share", [0.3, 0.95])
def test_the_same_tokens_are_kept(spread: float, vocabulary: int, share: float) -> None:
    generator = torch.Generator().manual_seed(vocabulary)
    # one row that candidates cannot cover, whatever the spread of the others
    scores = torch.cat([spread * torch.randn(3, vocabulary, generator=generator), torch.zeros(1, vocabulary)])
    scores += 1e-3 * torch.randn(scores.shape, generator=generator)
    theirs = TopPLogitsWarper(share)(torch.zeros(4, 1), scores.clone())
    ours = keep_likeliest(scores, share)
    # Where the order of a sum decides, one token may be in one set and not in the other.
    different = ours.isinf() != theirs.isinf()
    assert different.sum(dim=-1).max() <= 1
    same = ~different
    assert torch.equal(ours[same], theirs[same])


def test_the_likeliest_token_is_always_kept() -> None:
    scores = torch.tensor([[0.0, 50.0, 0.0]])
    assert keep_likeliest(scores, 0.01).isinf().tolist() == [[True, False, True]]
