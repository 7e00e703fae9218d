"""The optimiser of the recipe against transformers, timm and plain torch."""

import copy
import math

import pytest
import torch
from accelerate import Accelerator
from timm.optim import param_groups_weight_decay
from torch import nn
from transformers import get_cosine_schedule_with_warmup

from retfound_hf import RetFoundForPreTraining
from retfound_hf.pretraining.loop import (
    gradient_norm,
    guarded_step,
    learning_rate_factor,
    make_optimizer,
    parameter_groups,
    warmup_share,
)


@pytest.mark.parametrize(("total", "warmup"), [(100, 10), (800, 15), (7, 3), (50, 0), (5, 5), (1, 0)])
def test_the_rate_at_whole_steps_is_that_of_transformers(total, warmup):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, warmup, total)
    for step in range(total):
        ours = learning_rate_factor(step / total, warmup_share(warmup, total))
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12), step
        optimizer.step()
        schedule.step()


def test_the_recipe_warms_up_for_15_of_800_epochs():
    assert learning_rate_factor(7.5 / 800, 15 / 800) == pytest.approx(0.5)
    assert learning_rate_factor(15 / 800, 15 / 800) == 1
    assert learning_rate_factor((15 + 785 / 2) / 800, 15 / 800) == pytest.approx(0.5)
    assert learning_rate_factor(1, 15 / 800) == pytest.approx(0, abs=1e-12)


def test_warmup_is_steps_or_a_share():
    assert warmup_share(0.02, 500) == 0.02
    assert warmup_share(10, 500) == 0.02
    assert warmup_share(1, 500) == 0.002
    assert warmup_share(900, 500) == 1
    assert warmup_share(0, 500) == 0


def test_decay_is_for_trained_matrices_alone_as_in_timm(tiny_config):
    model = RetFoundForPreTraining(tiny_config())
    decayed, plain = parameter_groups(model, 0.05)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.05, 0.0)
    # Tokens are three-dimensional: MAE's own call of this timm function decays them too.
    ours = {0.05: set(map(id, decayed["params"])), 0.0: set(map(id, plain["params"]))}
    theirs = {group["weight_decay"]: set(map(id, group["params"])) for group in param_groups_weight_decay(model, 0.05)}
    assert ours == theirs
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert all(names[key].endswith("bias") or "norm" in names[key] for key in ours[0.0])
    left = set(names) - ours[0.0] - ours[0.05]
    assert {names[key] for key in left} == {"vit.embeddings.position_embeddings", "decoder.decoder_pos_embed"}


@pytest.fixture
def trained():
    """A small network after two steps, so that the moments are not zero, and a copy of it."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 1))
    accelerator = Accelerator(cpu=True)
    optimizer = make_optimizer(network, 0.01, 0.05, (0.9, 0.95))
    network, optimizer = accelerator.prepare(network, optimizer)
    for _ in range(2):
        (network(torch.randn(8, 6)) ** 2).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return accelerator, network, optimizer


def snapshot(network: nn.Module, optimizer) -> list[torch.Tensor]:
    state = optimizer.state_dict()["state"]
    moments = [value.clone() for entry in state.values() for value in entry.values()]
    assert len(moments) == 3 * len(list(network.parameters()))
    return [*(parameter.detach().clone() for parameter in network.parameters()), *moments]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_step_that_is_not_finite_changes_nothing(trained, value):
    accelerator, network, optimizer = trained
    before = snapshot(network, optimizer)
    (network(torch.randn(8, 6)) * value).sum().backward()
    norm = gradient_norm(accelerator, network, 0.0)
    assert not norm.isfinite()
    guarded_step(accelerator, optimizer, norm.isfinite())
    after = snapshot(network, optimizer)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    optimizer.zero_grad()
    (network(torch.randn(8, 6)) ** 2).sum().backward()
    guarded_step(accelerator, optimizer, torch.tensor(True))
    after = snapshot(network, optimizer)
    assert not any(torch.equal(one, other) for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize("finite", [True, False])
def test_the_guard_decides_whatever_the_gradients_are(trained, finite):
    accelerator, network, optimizer = trained
    twin = copy.deepcopy(network)
    plain = torch.optim.AdamW(parameter_groups(twin, 0.05), lr=0.01, betas=(0.9, 0.95))
    plain.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for group in plain.param_groups:
        group["fused"] = False
    inputs = torch.randn(8, 6)
    for model in (network, twin):
        (model(inputs) ** 2).sum().backward()
    before = snapshot(network, optimizer)
    guarded_step(accelerator, optimizer, torch.tensor(finite))
    if finite:
        plain.step()
        expected = snapshot(twin, plain)
        assert not torch.equal(before[0], expected[0])
        for one, other in zip(snapshot(network, optimizer), expected, strict=True):
            torch.testing.assert_close(one, other, atol=1e-7, rtol=1e-5)
    else:
        assert all(torch.equal(one, other) for one, other in zip(before, snapshot(network, optimizer), strict=True))
    assert not hasattr(optimizer.optimizer, "found_inf")


@pytest.mark.parametrize("limit", [0.0, 0.5, 1e6])
def test_the_norm_is_that_before_clipping(trained, limit):
    accelerator, network, _ = trained
    (network(torch.randn(8, 6)) ** 2).sum().backward()
    gradients = [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]
    expected = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    assert expected > 0.5
    assert gradient_norm(accelerator, network, limit) == pytest.approx(expected.item(), rel=1e-5)
    scale = min(1.0, limit / expected.item()) if limit else 1.0
    clipped = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    for gradient, before in zip(clipped, gradients, strict=True):
        torch.testing.assert_close(gradient, before * scale)
