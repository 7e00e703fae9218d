"""DINO's loss by hand and by lightly; its schedules, its centre, its teacher."""

import math

import pytest
import torch
from lightly.loss import DINOLoss
from lightly.models.modules import DINOProjectionHead
from small_runs import SMALL

from retfound_hf.pretraining.data import make_loader, step_generator
from retfound_hf.pretraining.objectives.dino import Head, cross_view_entropy


def test_two_views_by_hand():
    """Targets on the first and the second of two outputs; the student gives both views even shares."""
    targets = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    assert cross_view_entropy(targets, torch.zeros(2, 1, 2)).item() == pytest.approx(math.log(2))
    # View 0's target is met by view 1, and view 1's by view 0: a view is never its own example.
    outputs = torch.tensor([[[0.0, 1.0]], [[1.0, 0.0]]])
    assert cross_view_entropy(targets, outputs).item() == pytest.approx(math.log(1 + math.exp(-10)), abs=1e-6)


@pytest.mark.parametrize("small", [0, 3])
def test_loss_centre_and_gradients_equal_lightlys(small):
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(2, 5, 12, generator=generator)
    found = torch.randn(2 + small, 5, 12, generator=generator).requires_grad_()
    expected = found.detach().clone().requires_grad_()
    lightly = DINOLoss(12, teacher_temp=0.05)
    lightly.center = torch.randn(1, 1, 12, generator=generator)
    targets = ((teacher - lightly.center) / 0.05).softmax(dim=-1)
    ours, theirs = cross_view_entropy(targets, found), lightly(list(teacher), list(expected))
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    ours.backward()
    theirs.backward()
    torch.testing.assert_close(found.grad, expected.grad, atol=1e-6, rtol=1e-5)


def test_the_head_equals_lightlys():
    torch.manual_seed(0)
    theirs = DINOProjectionHead(16, 24, 256, 40, batch_norm=False)
    ours = Head(16, 24, 40)
    linear = [layer for layer in theirs.layers if isinstance(layer, torch.nn.Linear)]
    for layer, other in zip(ours.layers[::2], linear, strict=True):
        layer.load_state_dict(other.state_dict())
    (directions,) = (value for value in theirs.last_layer.parameters() if value.shape == (40, 256))
    ours.last.data.copy_(directions)
    features = torch.randn(6, 16)
    torch.testing.assert_close(ours(features), theirs(features), atol=1e-5, rtol=1e-5)
    assert ours(features).abs().max() <= 1


@pytest.fixture
def stepped(make_objective, images):
    """An objective after a forward pass, and its views."""
    objective = make_objective("dino")
    views = objective.views(images, objective.draw(16, step_generator(0, 0)))
    loss, logs = objective(views)
    return objective, views, loss, logs


def test_the_objective_is_lightlys_loss_of_the_networks_outputs(stepped):
    objective, views, loss, logs = stepped
    teacher = objective.teacher_head(objective.model(views["large"]).pooler_output)
    encoded = [objective.student(pixels, interpolate_pos_encoding=True).pooler_output for pixels in views.values()]
    student = [objective.head(vectors) for vectors in encoded]
    lightly = DINOLoss(24, teacher_temp=objective.temperature)
    expected = lightly(list(teacher.chunk(2)), [view for part in student for view in part.split(16)])
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert logs.shape == (len(objective.log_names),) == (3,)
    objective.after_step(0.0)
    torch.testing.assert_close(objective.centre, lightly.center.flatten(), atol=1e-6, rtol=1e-4)


def test_the_centre_of_two_passes_is_that_of_the_large_one(make_objective, stepped):
    objective, views, *_ = stepped
    parts = make_objective("dino")
    parts.load_state_dict(objective.state_dict())
    for half in range(2):
        parts({
            name: torch.cat([view.chunk(2)[half] for view in pixels.split(16)]) for name, pixels in views.items()
        })  # fmt: skip
    for one in (objective, parts):
        one.after_step(0.0)
    assert objective.centre.abs().max() > 1e-4
    torch.testing.assert_close(objective.centre, parts.centre, atol=1e-6, rtol=1e-4)


def test_a_centre_that_is_not_finite_is_not_taken(stepped):
    objective, *_ = stepped
    objective.seen[3] = math.nan
    objective.after_step(0.0)
    assert torch.equal(objective.centre, torch.zeros(24))


def test_the_teacher_follows_and_no_gradient_reaches_it(stepped):
    objective, _, loss, _ = stepped
    loss.backward()
    assert all(parameter.grad is None for parameter in [*objective.model.parameters(), objective.teacher_head.last])
    trained = [p for p in objective.student.parameters() if p.requires_grad] + [*objective.head.parameters()]
    assert all(parameter.grad is not None for parameter in trained)
    with torch.no_grad():
        objective.head.last += 1
    before = objective.teacher_head.last.clone()
    objective.after_step(0.5)
    # Half of the way from 0.9 to 1: five hundredths of the student.
    torch.testing.assert_close(objective.teacher_head.last, before + 0.05 * (objective.head.last - before))


def test_schedules(make_objective):
    objective = make_objective("dino", teacher_momentum=None)
    assert objective.momentum == 0.996
    for progress, epochs, temperature in [(0, 0, 0.04), (0.1, 15, 0.055), (0.5, 30, 0.07), (0.15, 1, 0.055)]:
        objective.before_step(progress, epochs)
        assert objective.temperature == pytest.approx(temperature)
    assert objective.frozen_parameters(0.99) == (objective.head.last,) and objective.frozen_parameters(1.0) == ()


def test_signs_of_collapse(stepped):
    """Outputs that are alike for all images: no divergence, and an entropy that tells even ones from a single one."""
    objective, views, *_ = stepped
    objective.teacher_head.last.data.zero_()
    objective.head.last.data.zero_()
    _, entropy, divergence = objective(views)[1].tolist()
    assert entropy == pytest.approx(1, abs=1e-5) and divergence == pytest.approx(0, abs=1e-4)
    objective.centre[0] = -50.0
    entropy = objective(views)[1][1].item()
    assert entropy == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("given", [None, 0.0])
def test_weight_decay_rises_by_half_a_cosine_and_spares_vectors(make_loop, given):
    """Also from none."""
    end = {} if given is None else {"final_weight_decay": 0.4}
    options = {"weight_decay": given, **end, "max_steps": 8, **SMALL["dino"]}
    loop, reader = make_loop(objective="dino", **options)
    batches = iter(make_loader(reader, loop.objective.draw, loop.order, loop.position, 0, pin_memory=False))
    found = []
    for _ in range(8):
        loop.step(batches)
        found.append([group["weight_decay"] for group in loop.optimizer.param_groups])
    loop.monitor.log.close()
    start = 0.04 if given is None else given
    expected = [0.4 + (start - 0.4) * (1 + math.cos(math.pi * step / 8)) / 2 for step in range(8)]
    assert [decay for decay, _ in found] == pytest.approx(expected)
    assert {decay for _, decay in found} == {0.0}
    assert expected[0] == pytest.approx(start)


def test_the_last_layer_rests_for_an_epoch_of_a_run(make_loop):
    loop, reader = make_loop(
        objective="dino", per_device_train_batch_size=50, max_steps=6, learning_rate=1e-2, **SMALL["dino"]
    )
    batches = iter(make_loader(reader, loop.objective.draw, loop.order, loop.position, 0, pin_memory=False))
    first = loop.objective.head.last.detach().clone()
    moved = []
    for _ in range(6):
        loop.step(batches)
        moved.append(not torch.equal(loop.objective.head.last, first))
    loop.monitor.log.close()
    assert moved == [False] * 4 + [True] * 2  # 203 images make four steps
