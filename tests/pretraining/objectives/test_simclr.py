"""NT-Xent by hand, by the definition pair for pair, and by lightly."""

import math

import pytest
import torch
from lightly.loss import NTXentLoss

from retfound_hf.pretraining.data import step_generator
from retfound_hf.pretraining.objectives.simclr import nt_xent


def test_two_images_with_equal_views_by_hand():
    """Each view has its partner at similarity 1 and two strangers at 0: -log(e^(1/t) / (e^(1/t) + 2))."""
    first = torch.tensor([[3.0, 0.0], [0.0, 0.5]])
    for temperature in (1.0, 0.5, 0.1):
        expected = math.log(1 + 2 * math.exp(-1 / temperature))
        assert nt_xent(first, first, temperature).item() == pytest.approx(expected, abs=1e-6)


def test_the_loss_is_its_definition_pair_for_pair():
    first, second = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    units = torch.nn.functional.normalize(torch.cat([first, second]), dim=1)
    losses = []
    for index in range(10):
        partner = (index + 5) % 10
        others = sum(math.exp(units[index] @ units[k] / 0.3) for k in range(10) if k != index)
        losses.append(-math.log(math.exp(units[index] @ units[partner] / 0.3) / others))
    assert nt_xent(first, second, 0.3).item() == pytest.approx(sum(losses) / 10, abs=1e-6)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_loss_and_gradients_equal_lightlys(temperature):
    values = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(1))
    found, expected = (values.clone().requires_grad_() for _ in range(2))
    ours = nt_xent(*found, temperature)
    theirs = NTXentLoss(temperature)(*expected)
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)
    ours.backward()
    theirs.backward()
    torch.testing.assert_close(found.grad, expected.grad, atol=1e-6, rtol=1e-5)


def test_the_objective_is_the_loss_of_the_projected_vectors(make_objective, images):
    objective = make_objective("simclr", temperature=0.2)
    views = objective.views(images, objective.draw(16, step_generator(0, 0)))
    loss, logs = objective(views)
    projected = objective.projector(objective.model(views["large"]).pooler_output)
    assert loss.item() == pytest.approx(NTXentLoss(0.2)(*projected.chunk(2)).item(), abs=1e-5)
    assert logs.shape == (len(objective.log_names),)
    assert make_objective("simclr").temperature == 0.1
    assert projected.shape == (32, 128)
