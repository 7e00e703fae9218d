"""Optimiser steps of a whole run: what may not change their result, and that they learn and never wait."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import get_cosine_schedule_with_warmup

from retfound_hf.pretraining.data import make_loader
from retfound_hf.pretraining.objectives import OBJECTIVES


@pytest.fixture
def drive(make_loop):
    """Makes a run and takes all its steps, without what lies between them; returns the loop."""

    def go(**options):
        loop, reader = make_loop(**options)
        batches = iter(make_loader(reader, loop.objective.draw, loop.order, loop.position, 0, pin_memory=False))
        loop.network.train()
        while not loop.order.is_finished(loop.position):
            loop.step(batches)
        loop.monitor.log.close()
        return loop

    return go


def weights(loop) -> torch.Tensor:
    """All but the biases of keys: a softmax does not see them, so that their steps are of rounding alone."""
    named = loop.objective.model.named_parameters()
    return torch.cat([values.detach().flatten() for name, values in named if not name.endswith("key.bias")])


def losses(loop) -> list[float]:
    return loop.buffer.values()[:, 0].tolist()


def assert_near(found, expected, weight: float, loss: float) -> None:
    assert losses(found) == pytest.approx(losses(expected), abs=loss)
    assert (weights(found) - weights(expected)).abs().max() < weight


@pytest.fixture
def reference(drive, tmp_path):
    loop = drive(output_dir=tmp_path / "reference")
    assert len(losses(loop)) == 6
    return loop


@pytest.mark.parametrize("accumulation", [2, 4])
def test_accumulation_equals_the_large_batch(drive, reference, accumulation):
    found = drive(per_device_train_batch_size=8 // accumulation, gradient_accumulation_steps=accumulation)
    assert found.buffer.ids == reference.buffer.ids
    assert_near(found, reference, weight=1e-6, loss=1e-6)


def test_gradient_checkpointing_equals_keeping_activations(drive, reference):
    found = drive(gradient_checkpointing=True)
    assert found.objective.model.vit.encoder.layer[0].gradient_checkpointing
    assert_near(found, reference, weight=1e-6, loss=1e-6)


def test_bfloat16_is_near_float32(drive, reference):
    found = drive(bf16=True)
    assert found.accelerator.mixed_precision == "bf16"
    assert weights(found).dtype == torch.float32
    assert losses(found) != losses(reference)
    assert losses(found) == pytest.approx(losses(reference), abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"gradient_checkpointing": True}], ids=["plain", "checkpointing"])
def test_compiled_blocks_equal_eager_ones(drive, reference, options):
    from torch._dynamo.utils import counters

    counters.clear()
    found = drive(torch_compile=True, **options)
    assert counters["stats"]["unique_graphs"] >= 2  # of the encoder's width and the decoder's
    assert_near(found, reference, weight=1e-5, loss=1e-5)


def test_the_same_run_twice_is_the_same_to_the_bit(drive, reference):
    assert torch.equal(weights(drive()), weights(reference))
    assert not torch.equal(weights(drive(seed=1)), weights(reference))


class Waits(TorchDispatchMode):
    """Collects the operations that make the host wait for the device."""

    def __init__(self):
        super().__init__()
        self.met = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if any(name in str(function) for name in ("_local_scalar_dense", "nonzero", "masked_select", "unique")):
            self.met.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gradient_accumulation_steps": 2, "max_grad_norm": 1.0, "bf16": True},
        *({"objective": name} for name in OBJECTIVES if name != "mae"),
    ],
    ids=str,
)
def test_no_step_waits_for_the_device(make_loop, options):
    loop, reader = make_loop(**options)
    batches = iter(list(make_loader(reader, loop.objective.draw, loop.order, loop.position, 0, pin_memory=False)))
    loop.network.train()
    with Waits() as waits:
        for _ in range(3):
            loop.step(batches)
    assert waits.met == []
    with Waits() as control:
        float(loop.buffer.values().mean())
    assert any("_local_scalar_dense" in name for name in control.met)
    loop.monitor.log.close()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(
    "options", [{"bf16": True}, {"max_grad_norm": 1.0}, *({"objective": name} for name in OBJECTIVES)], ids=str
)
def test_cuda_meets_no_wait_either(make_loop, options):
    loop, reader = make_loop(**options)
    batches = iter(list(make_loader(reader, loop.objective.draw, loop.order, loop.position, 0, pin_memory=True)))
    loop.network.train()
    loop.step(batches)
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            loop.step(batches)
    finally:
        torch.cuda.set_sync_debug_mode(before)
    loop.monitor.log.close()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_nothing_but_batches_goes_to_the_device_in_a_step(make_loop, monkeypatch, objective):
    """A copy of a Python number or tuple to a GPU makes the host wait for it; buffers of the objective do not."""
    loop, reader = make_loop(objective=objective)
    batches = iter(list(make_loader(reader, loop.objective.draw, loop.order, loop.position, 0, pin_memory=False)))
    made = []
    for name in ("tensor", "as_tensor"):
        original = getattr(torch, name)

        def counted(data, *args, original=original, **kwargs):
            if not isinstance(data, torch.Tensor):
                made.append(data)
            return original(data, *args, **kwargs)

        monkeypatch.setattr(torch, name, counted)
    loop.network.train()
    loop.step(batches)
    loop.monitor.log.close()
    assert made == []


def test_the_learning_rate_of_every_step_is_the_schedules(make_loop):
    loop, reader = make_loop(max_steps=20, warmup_steps=5, learning_rate=0.01)
    batches = iter(make_loader(reader, loop.objective.draw, loop.order, loop.position, 0, pin_memory=False))
    rates = []
    for _ in range(20):
        loop.step(batches)
        rates.append({group["lr"] for group in loop.optimizer.param_groups})
    loop.monitor.log.close()
    assert all(len(rate) == 1 for rate in rates)
    plain = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.01)
    schedule = get_cosine_schedule_with_warmup(plain, 5, 20)
    for (rate,) in rates:
        assert rate == pytest.approx(plain.param_groups[0]["lr"], abs=1e-12)
        plain.step()
        schedule.step()


def test_it_learns_what_no_constant_can_say(drive, encode, write_shard, tmp_path):
    """Hidden patches have the colour of the visible ones, and every image has another colour."""
    colours = np.random.default_rng(0).integers(20, 236, (64, 3))
    images = [encode(Image.new("RGB", (64, 64), tuple(map(int, colour)))) for colour in colours]
    path = write_shard(tmp_path / "flat.parquet", images, [f"flat{number}" for number in range(64)])
    loop = drive(train_data=[str(path)], max_steps=150, per_device_train_batch_size=16, base_learning_rate=0.05)
    # The loss counts patches of zero mean and unit variance, here the three channels of one colour.
    targets = (colours - colours.mean(1, keepdims=True)) / colours.std(1, keepdims=True)
    constant = ((targets - targets.mean(0)) ** 2).mean()
    found = losses(loop)
    assert 0.9 < constant < 1 < found[0]
    assert np.mean(found[-10:]) < 0.3 * constant
