"""LARS by hand, and that it passes over steps that are not finite."""

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from retfound_hf.pretraining.loop import LARS_MOMENTUM, LARS_TRUST, guarded_step, make_optimizer


@pytest.fixture
def trained():
    """A layer, its optimiser as a run has it, and a loss whose gradients are known."""
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    accelerator = Accelerator(cpu=True)
    layer, optimizer = accelerator.prepare(layer, make_optimizer(layer, 0.5, 0.1, (0.9, 0.95), "lars"))
    slopes = {"weight": torch.randn(2, 3), "bias": torch.randn(2)}

    def backward() -> None:
        optimizer.zero_grad()
        sum((slopes[name] * value).sum() for name, value in layer.named_parameters()).backward()

    return accelerator, layer, optimizer, slopes, backward


def test_two_steps_by_hand(trained):
    accelerator, layer, optimizer, slopes, backward = trained
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    moments = [torch.zeros(2, 3), torch.zeros(2)]
    for _ in range(2):
        direction = slopes["weight"] + 0.1 * weight
        moments[0] = LARS_MOMENTUM * moments[0] + LARS_TRUST * weight.norm() / direction.norm() * direction
        moments[1] = LARS_MOMENTUM * moments[1] + slopes["bias"]  # neither decay nor adaptation
        weight, bias = weight - 0.5 * moments[0], bias - 0.5 * moments[1]
        backward()
        guarded_step(accelerator, optimizer, torch.tensor(True))
        torch.testing.assert_close(layer.weight.detach(), weight)
        torch.testing.assert_close(layer.bias.detach(), bias)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]


@pytest.mark.parametrize("first", [True, False])
def test_a_step_that_is_not_finite_changes_nothing(trained, first):
    accelerator, layer, optimizer, _, backward = trained
    if not first:
        backward()
        guarded_step(accelerator, optimizer, torch.tensor(True))
    state = optimizer.state_dict()["state"]
    before = [
        value.detach().clone() for value in [*layer.parameters(), *(s["momentum_buffer"] for s in state.values())]
    ]
    backward()
    layer.weight.grad[0, 0] = float("nan")
    guarded_step(accelerator, optimizer, torch.tensor(False))
    state = optimizer.state_dict()["state"]
    after = [*layer.parameters(), *(entry["momentum_buffer"] for entry in state.values())]
    assert len(before) == 4 and all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_weights_of_zero_step_by_their_gradient(trained):
    accelerator, layer, optimizer, slopes, backward = trained
    nn.init.zeros_(layer.weight)
    backward()
    guarded_step(accelerator, optimizer, torch.tensor(True))
    torch.testing.assert_close(layer.weight.detach(), -0.5 * slopes["weight"])
