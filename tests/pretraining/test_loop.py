"""Training loop: optimisers, schedules, guards, and what may not change the result of the steps of a run."""

import copy
import math

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file
from small_runs import JOINT, SMALL, assert_same_checkpoints, encoded, write_parquet
from timm.optim import param_groups_weight_decay
from tiny import tiny_config
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModel, get_cosine_schedule_with_warmup

from retfound_hf import RetFoundForPreTraining
from retfound_hf.pretraining.data import make_loader
from retfound_hf.pretraining.loop import (
    LARS_MOMENTUM,
    LARS_TRUST,
    BatchNormGuard,
    gradient_norm,
    guarded_step,
    learning_rate_factor,
    make_optimizer,
    parameter_groups,
    warmup_share,
)
from retfound_hf.pretraining.objectives import OBJECTIVES
from retfound_hf.pretraining.objectives.joint_embedding import JointEmbedding


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
def reference(drive):
    loop = drive()
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


def loaded(loop, reader, pin_memory: bool = False):
    """All batches of a run, read before it."""
    loop.network.train()
    return iter(list(make_loader(reader, loop.objective.draw, loop.order, loop.position, 0, pin_memory)))


@pytest.mark.parametrize(
    "options",
    [{}, {"gradient_accumulation_steps": 2, "max_grad_norm": 1.0, "bf16": True}, *({"objective": n} for n in JOINT)],
    ids=str,
)
def test_no_step_waits_for_the_device(make_loop, options):
    loop, reader = make_loop(**options)
    batches = loaded(loop, reader)
    with Waits() as waits:
        for _ in range(3):
            loop.step(batches)
    assert waits.met == []
    with Waits() as control:
        float(loop.buffer.values().mean())
    assert any("_local_scalar_dense" in name for name in control.met)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(
    "options", [{"bf16": True}, {"max_grad_norm": 1.0}, *({"objective": name} for name in OBJECTIVES)], ids=str
)
def test_cuda_meets_no_wait_either(make_loop, options):
    loop, reader = make_loop(**options)
    batches = loaded(loop, reader, pin_memory=True)
    loop.step(batches)
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            loop.step(batches)
    finally:
        torch.cuda.set_sync_debug_mode(before)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_nothing_but_batches_goes_to_the_device_in_a_step(make_loop, monkeypatch, objective):
    """A copy of a Python number or tuple to a GPU makes the host wait for it; buffers of the objective do not."""
    loop, reader = make_loop(objective=objective)
    batches, made = loaded(loop, reader), []
    for name in ("tensor", "as_tensor"):
        original = getattr(torch, name)

        def counted(data, *args, original=original, **kwargs):
            if not isinstance(data, torch.Tensor):
                made.append(data)
            return original(data, *args, **kwargs)

        monkeypatch.setattr(torch, name, counted)
    loop.step(batches)
    assert made == []


def test_rates_and_decays_of_every_step_are_the_schedules(make_loop):
    """Weight decay rises by half a cosine, also from none, and spares vectors."""
    for decay, end in ((0.04, 0.4), (0.0, 0.4), (0.1, None)):
        options = {"weight_decay": decay, "final_weight_decay": end, "learning_rate": 0.01, "warmup_steps": 5}
        loop, reader = make_loop(**options, max_steps=20)
        batches, plain = loaded(loop, reader), torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.01)
        schedule = get_cosine_schedule_with_warmup(plain, 5, 20)
        for step in range(20):
            loop.step(batches)
            first, second = loop.optimizer.param_groups
            assert first["lr"] == second["lr"] == pytest.approx(plain.param_groups[0]["lr"], abs=1e-12)
            rising = decay if end is None else end + (decay - end) * (1 + math.cos(math.pi * step / 20)) / 2
            assert (first["weight_decay"], second["weight_decay"]) == (pytest.approx(rising), 0.0)
            plain.step()
            schedule.step()


def test_it_learns_what_no_constant_can_say(drive, tmp_path):
    """Hidden patches have the colour of the visible ones, and every image has another colour."""
    colours = np.random.default_rng(0).integers(20, 236, (64, 3))
    images = [encoded(Image.new("RGB", (64, 64), tuple(map(int, colour)))) for colour in colours]
    path = write_parquet(tmp_path / "flat.parquet", images, [f"flat{number}" for number in range(64)])
    loop = drive(train_data=[str(path)], max_steps=150, per_device_train_batch_size=16, base_learning_rate=0.05)
    # The loss counts patches of zero mean and unit variance, here the three channels of one colour.
    targets = (colours - colours.mean(1, keepdims=True)) / colours.std(1, keepdims=True)
    constant = ((targets - targets.mean(0)) ** 2).mean()
    found = losses(loop)
    assert 0.9 < constant < 1 < found[0]
    assert np.mean(found[-10:]) < 0.3 * constant


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


def test_decay_is_for_trained_matrices_alone_as_in_timm():
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
def adamw():
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
def test_a_step_that_is_not_finite_changes_nothing(adamw, value):
    accelerator, network, optimizer = adamw
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
def test_the_guard_decides_whatever_the_gradients_are(adamw, finite):
    accelerator, network, optimizer = adamw
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
def test_the_norm_is_that_before_clipping(adamw, limit):
    accelerator, network, _ = adamw
    (network(torch.randn(8, 6)) ** 2).sum().backward()
    gradients = [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]
    expected = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    assert expected > 0.5
    assert gradient_norm(accelerator, network, limit) == pytest.approx(expected.item(), rel=1e-5)
    scale = min(1.0, limit / expected.item()) if limit else 1.0
    clipped = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    for gradient, before in zip(clipped, gradients, strict=True):
        torch.testing.assert_close(gradient, before * scale)


@pytest.fixture
def lars():
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


def test_two_lars_steps_by_hand(lars):
    accelerator, layer, optimizer, slopes, backward = lars
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
def test_a_lars_step_that_is_not_finite_changes_nothing(lars, first):
    accelerator, layer, optimizer, _, backward = lars
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


def test_lars_weights_of_zero_step_by_their_gradient(lars):
    accelerator, layer, optimizer, slopes, backward = lars
    nn.init.zeros_(layer.weight)
    backward()
    guarded_step(accelerator, optimizer, torch.tensor(True))
    torch.testing.assert_close(layer.weight.detach(), -0.5 * slopes["weight"])


@pytest.fixture
def faulty(resnet_folder):
    """Options of a quick run that leaves steps out; "simclr-resnet" is on a ResNet."""

    def make(name: str, **others):
        name, _, kind = name.partition("-")
        on = {"model_name_or_path": str(resnet_folder), "image_size": 32} if kind else {}
        run = {"on_non_finite": "skip", "per_device_train_batch_size": 16, "save_steps": 6, "modality": "cfp"}
        return {"objective": name, **run, **on, **SMALL[name], **others}

    return make


def plant(patch: pytest.MonkeyPatch, passes: set[int]) -> None:
    """The pixels of these forward passes, counted from 1, are infinite."""
    views, taken = JointEmbedding.views, []

    def planted(self, images, draws):
        taken.append(None)
        made = views(self, images, draws)
        return {name: pixels * math.inf for name, pixels in made.items()} if len(taken) in passes else made

    patch.setattr(JointEmbedding, "views", planted)


@pytest.mark.parametrize("name", [*(f"{name}-resnet" for name in JOINT), "simclr", "moco_v3"])
def test_a_step_of_infinite_pixels_leaves_a_result_of_use(faulty, start, monkeypatch, name):
    plant(monkeypatch, {3})
    folder = start(**faulty(name)).output_dir
    for file in ("model.safetensors", "objective.safetensors"):
        found = load_file(folder / "checkpoint-6" / file)
        assert not [key for key, value in found.items() if not value.isfinite().all()]
    with torch.no_grad():
        features = AutoModel.from_pretrained(folder).eval()(torch.randn(4, 3, 32, 32)).pooler_output.flatten(1)
    assert features.isfinite().all() and features.std(dim=0).max() > 0


@pytest.mark.parametrize("name", ["simclr-resnet", "moco_v3-resnet", "swav"])
def test_a_run_without_faults_is_the_same_as_without_the_guard(faulty, start, monkeypatch, name):
    whole = start("guarded", **faulty(name)).output_dir
    monkeypatch.setattr(BatchNormGuard, "restore", lambda *_: None)
    bare = start("bare", **faulty(name)).output_dir
    assert_same_checkpoints(whole / "checkpoint-6", bare / "checkpoint-6", "objective.safetensors")


@pytest.mark.parametrize("half", [False, True])
def test_of_several_passes_one_that_is_not_finite_undoes_all(
    faulty, make_loop, monkeypatch, half_precision_here, half
):
    """The second step has the third and the fourth pass; also where a scaler guards the weights (fp16)."""
    plant(monkeypatch, {4})
    loop, reader = make_loop(**faulty("dino-resnet", gradient_accumulation_steps=2))
    guard, kept = BatchNormGuard(loop.network), []
    batches = loaded(loop, reader)
    for _ in range(3):
        loop.step(batches)
        kept.append(torch.cat(guard.buffers))
    assert not loop.buffer.values()[1, 0].isfinite()
    assert torch.equal(kept[0], kept[1])
    assert kept[2].isfinite().all() and not torch.equal(kept[1], kept[2])


@pytest.mark.parametrize("loss, norm, taken", [(1, 1, True), (math.nan, 1, False), (1, math.inf, False)])
def test_loss_and_norm_decide(loss, norm, taken):
    network = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2), nn.BatchNorm1d(2, affine=False))
    guard = BatchNormGuard(network)
    before = [buffer.clone() for buffer in guard.buffers]
    guard.save()
    network(torch.randn(8, 3))
    after = [buffer.clone() for buffer in guard.buffers]
    guard.restore(torch.tensor(float(loss)), torch.tensor(float(norm)))
    assert len(before) == 4
    for number, buffer in enumerate(guard.buffers):
        assert torch.equal(buffer, (after if taken else before)[number])
        assert not torch.equal(before[number], after[number])
