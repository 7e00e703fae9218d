"""MoCo-v3's loss by hand and by its definition; its momentum encoder and what it freezes."""

import math

import pytest
import torch

from retfound_hf.pretraining.data import step_generator
from retfound_hf.pretraining.objectives.joint_embedding import ema_momentum
from retfound_hf.pretraining.objectives.moco_v3 import info_nce


def test_two_images_by_hand():
    """Own key at cosine 1, the other's at 0: 2 t log(1 + e^(-1/t))."""
    queries, keys = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    for temperature in (1.0, 0.2):
        expected = 2 * temperature * math.log(1 + math.exp(-1 / temperature))
        assert info_nce(queries, keys, temperature).item() == pytest.approx(expected, abs=1e-6)


def test_the_loss_is_its_definition():
    queries, keys = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    losses = []
    for query, own in zip(queries, keys, strict=True):
        similar = [math.exp(torch.cosine_similarity(query, key, dim=0) / 0.3) for key in keys]
        losses.append(-math.log(math.exp(torch.cosine_similarity(query, own, dim=0) / 0.3) / sum(similar)))
    assert info_nce(queries, keys, 0.3).item() == pytest.approx(0.6 * sum(losses) / 5, abs=1e-6)


@pytest.fixture
def stepped(make_objective, images):
    objective = make_objective("moco_v3")
    views = objective.views(images, objective.draw(16, step_generator(0, 0)))
    return objective, views, *objective(views)


def test_each_view_predicts_the_momentum_encoders_other_view(stepped):
    objective, views, loss, logs = stepped
    first, second = views["large"].chunk(2)

    def asked(pixels: torch.Tensor) -> torch.Tensor:
        return objective.predictor(objective.projector(objective.model(pixels).pooler_output))

    def seen(pixels: torch.Tensor) -> torch.Tensor:
        return objective.average["projector"](objective.average["model"](pixels).pooler_output)

    expected = info_nce(asked(first), seen(second), 0.2) + info_nce(asked(second), seen(first), 0.2)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert logs.shape == (len(objective.log_names),)


def test_gradients_reach_all_but_average_patch_projection_and_final_norm(stepped):
    objective, _, loss, _ = stepped
    loss.backward()
    without = {name for name, parameter in objective.named_parameters() if parameter.grad is None}
    assert without == {name for name, _ in objective.named_parameters() if name.startswith("average.")} | {
        "model.embeddings.patch_embeddings.projection.weight", "model.embeddings.patch_embeddings.projection.bias",
        "model.embeddings.position_embeddings", "model.layernorm.weight", "model.layernorm.bias",
    }  # fmt: skip


def test_the_average_follows_network_and_projector(stepped):
    objective, *_ = stepped
    with torch.no_grad():
        for parameter in [*objective.model.parameters(), *objective.projector.parameters()]:
            parameter += 1
    before = {name: value.clone() for name, value in objective.average.named_parameters()}
    objective.after_step(0.0)
    for name, value in objective.average.named_parameters():
        torch.testing.assert_close(value, before[name] + 0.1, atol=1e-6, rtol=1e-5)


def test_momentum_rises_by_half_a_cosine():
    assert [ema_momentum(progress, 0.99) for progress in (0, 0.5, 1)] == pytest.approx([0.99, 0.995, 1])
    assert ema_momentum(0.25, 0.0) == pytest.approx(1 - (1 + math.sqrt(0.5)) / 2)
