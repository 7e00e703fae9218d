"""SwAV's assignments and loss by hand and by lightly."""

import pytest
import torch
from lightly.loss import SwaVLoss
from lightly.loss.swav_loss import sinkhorn as lightly_sinkhorn

from retfound_hf.pretraining.data import step_generator
from retfound_hf.pretraining.objectives.swav import EPSILON, sinkhorn, swapped_prediction


def test_assignments_by_hand():
    """Equal scores are shared evenly; clear ones are given whole, as many images to each prototype."""
    assert torch.allclose(sinkhorn(torch.zeros(4, 2)), torch.full((4, 2), 0.5))
    clear = torch.tensor([[1.0, -1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, 1.0]])
    assert torch.allclose(sinkhorn(clear), (clear + 1) / 2, atol=1e-6)


@pytest.mark.parametrize("epsilon", [0.05, 0.0125])
def test_assignments_use_all_prototypes_though_scores_do_not(epsilon):
    scores = torch.rand(32, 8, generator=torch.Generator().manual_seed(0)) * 0.2
    scores[:, 0] += 0.3
    assert (scores.argmax(dim=1) == 0).all()
    codes = sinkhorn(scores, epsilon)
    torch.testing.assert_close(codes.sum(dim=1), torch.ones(32))
    assert codes.sum(dim=0).min() > 2 and codes.sum(dim=0).max() < 6
    torch.testing.assert_close(codes, lightly_sinkhorn(scores, epsilon=epsilon), atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("shape", [(32, 24), (64, 3000)])
def test_assignments_at_the_published_epsilon_are_lightlys(shape):
    scores = torch.rand(shape, generator=torch.Generator().manual_seed(2)) * 2 - 1
    torch.testing.assert_close(sinkhorn(scores), lightly_sinkhorn(scores, epsilon=0.05), atol=1e-6, rtol=0.0)


def directions(count: int, seed: int) -> torch.Tensor:
    """(count, 128), of unit length."""
    found = torch.randn(count, 128, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(found, dim=1)


@pytest.mark.parametrize("epsilon", [0.0125, 1e-3, 1e-45])
def test_a_small_epsilon_leaves_equal_images_equal(epsilon):
    """Sixty-four vectors at one of 3,000 prototypes: of most others they have shares that are no float32."""
    prototypes = directions(3000, 1)
    codes = sinkhorn((prototypes[:1] @ prototypes.T).expand(64, -1), epsilon)
    torch.testing.assert_close(codes, torch.full((64, 3000), 1 / 3000))


@pytest.mark.parametrize("epsilon", [0.02, 0.0125, 1e-3, 1e-45])
def test_a_prototype_opposite_to_the_whole_batch_has_its_images(epsilon):
    prototypes = directions(24, 1)
    vectors = torch.nn.functional.normalize(prototypes[1] + 0.02 * directions(64, 2), dim=1)
    prototypes[0] = -prototypes[1]
    scores = vectors @ prototypes.T
    assert scores[:, 0].max() < -0.99
    codes = sinkhorn(scores, epsilon)
    torch.testing.assert_close(codes.sum(dim=1), torch.ones(64))
    assert codes.sum(dim=0)[0] > 0.6  # 64 / 24 after more than three iterations


def test_a_smaller_epsilon_makes_assignments_sharper():
    scores = torch.rand(32, 8, generator=torch.Generator().manual_seed(0)) * 0.2
    entropies = [torch.special.entr(sinkhorn(scores, epsilon)).sum(dim=1).mean() for epsilon in (0.05, 0.03, 0.02)]
    assert entropies[0] > 1.1 * entropies[1] > 1.2 * entropies[2]


def test_the_option_reaches_the_loss(make_objective, images):
    losses = []
    for epsilon in (None, EPSILON, 0.02):
        objective = make_objective("swav", sinkhorn_epsilon=epsilon)
        views = objective.views(images, objective.draw(len(images), step_generator(0, 0)))
        losses.append(objective(views)[0].item())
    assert losses[0] == losses[1] != pytest.approx(losses[2], abs=1e-4)


@pytest.mark.parametrize("small", [0, 3])
def test_loss_and_gradients_equal_lightlys(small):
    found = torch.rand(2 + small, 6, 10, generator=torch.Generator().manual_seed(1)).requires_grad_()
    expected = found.detach().clone().requires_grad_()
    codes = torch.stack([sinkhorn(view) for view in found[:2].detach()])
    ours = swapped_prediction(codes, found, 0.1)
    theirs = SwaVLoss(0.1)(list(expected[:2]), list(expected[2:]))
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    ours.backward()
    theirs.backward()
    torch.testing.assert_close(found.grad, expected.grad, atol=1e-6, rtol=1e-5)


@pytest.fixture
def stepped(make_objective, images):
    objective = make_objective("swav")
    views = objective.views(images, objective.draw(16, step_generator(0, 0)))
    return objective, views, *objective(views)


def test_the_objective_is_lightlys_loss_of_the_networks_outputs(stepped):
    objective, views, loss, logs = stepped
    features = torch.cat(
        [objective.model(pixels, interpolate_pos_encoding=True).pooler_output for pixels in views.values()]
    )
    units = torch.nn.functional.normalize(objective.projector(features), dim=1)
    scores = (units @ objective.prototypes.T).split(16)
    assert loss.item() == pytest.approx(SwaVLoss(0.1)(scores[:2], scores[2:]).item(), rel=1e-4)
    assert logs.shape == (len(objective.log_names),)
    assert 0.5 < logs[1] <= 1


def test_prototypes_rest_for_an_epoch_and_stay_at_unit_length(stepped):
    objective, *_ = stepped
    assert objective.frozen_parameters(0.99) == (objective.prototypes,) and objective.frozen_parameters(1.0) == ()
    torch.testing.assert_close(objective.prototypes.norm(dim=1), torch.ones(24))
    objective.prototypes.data *= torch.rand(24, 1) + 1
    objective.after_step(0.3)
    torch.testing.assert_close(objective.prototypes.norm(dim=1), torch.ones(24))


def test_a_single_prototype_for_all_shows_as_no_entropy(stepped):
    objective, views, *_ = stepped
    objective.prototypes.data[1:] = -objective.prototypes.data[0]
    objective.projector = torch.nn.Sequential(
        objective.projector, type("All", (torch.nn.Module,), {"forward": lambda self, x: 0 * x + self.at})()
    )
    objective.projector[1].at = objective.prototypes.data[0]
    spread, entropy = objective(views)[1].tolist()
    assert spread == pytest.approx(0, abs=1e-4) and entropy == pytest.approx(0, abs=1e-4)
