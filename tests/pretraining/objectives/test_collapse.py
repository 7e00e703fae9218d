"""The signs of collapse on directions and shares whose value is known."""

import pytest
import torch

from retfound_hf.pretraining.objectives.joint_embedding import entropy, spread


def test_spread_of_known_directions():
    assert spread(torch.ones(8, 4)).item() == pytest.approx(0, abs=1e-6)
    assert spread(torch.randn(4000, 64, generator=torch.Generator().manual_seed(0))).item() == pytest.approx(
        1, abs=0.01
    )
    # Length does not count: two opposite directions on one of four axes.
    opposite = torch.tensor([[3.0, 0, 0, 0], [-0.5, 0, 0, 0]])
    assert spread(opposite).item() == pytest.approx(1 / 4 * 2)


def test_entropy_of_known_shares():
    shares = torch.tensor([[0.25] * 4, [1.0, 0, 0, 0], [0.5, 0.5, 0, 0]])
    assert entropy(shares).tolist() == pytest.approx([1, 0, 0.5])
