"""The objective of RETFound against torchvision and the model's own loss."""

import pickle

import numpy as np
import pytest
import torch
from tiny import tiny_config
from torchvision.transforms.v2 import InterpolationMode, functional

from retfound_hf import RetFoundForPreTraining
from retfound_hf.pretraining.data import step_generator
from retfound_hf.pretraining.objectives.mae import MaskedAutoencoding

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


@pytest.fixture
def objective() -> MaskedAutoencoding:
    torch.manual_seed(0)
    return MaskedAutoencoding(RetFoundForPreTraining(tiny_config()), 64)


def test_views_equal_torchvision_on_the_same_draws(objective, images):
    draws = objective.draw(16, step_generator(0, 0))
    assert 0 < draws["flips"].sum() < 16
    expected = []
    for image, crop, flip in zip(images, draws["crops"].tolist(), draws["flips"], strict=True):
        view = functional.resized_crop(image, *crop, size=[32, 32], interpolation=InterpolationMode.BICUBIC)
        view = functional.horizontal_flip(view) if flip else view
        expected.append(functional.normalize(view / 255, MEAN, STD))
    found = objective.views(images, draws)
    difference = (found["pixel_values"] - torch.stack(expected)).abs()
    level = 1 / 255 / min(STD)
    assert difference.mean() < 0.4 * level and difference.max() < 1.5 * level
    assert found["pixel_values"].dtype == torch.float32
    assert torch.equal(found["noise"], draws["noise"])


def test_draws_are_those_of_the_recipe(objective):
    draws = objective.draw(4000, step_generator(0, 0))
    top, left, height, width = draws["crops"].unbind(1)
    assert min(top.min(), left.min()) >= 0 and max((top + height).max(), (left + width).max()) <= 64
    area = height * width / 64**2
    assert 0.19 < area.min() < 0.21 and 0.9 < area.max() <= 1
    assert draws["flips"].float().mean() == pytest.approx(0.5, abs=0.03)
    assert draws["noise"].shape == (4000, 16)
    # With uniform noise every patch is among the four of lowest noise in a quarter of the images.
    kept = draws["noise"].argsort(dim=1)[:, :4]
    assert kept.flatten().bincount() / 4000 == pytest.approx(0.25, abs=0.03)
    assert len(pickle.dumps(objective.draw)) < 1000  # it goes to the loader's workers


def test_the_loss_is_the_models(objective, images):
    draws = objective.draw(16, step_generator(0, 3))
    views = objective.views(images, draws)
    loss, logs = objective(views)
    stock = RetFoundForPreTraining(objective.model.config)
    stock.load_state_dict(objective.model.state_dict())
    expected = stock(pixel_values=views["pixel_values"], noise=draws["noise"]).loss.item()
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert logs.shape == (0,) == (len(objective.log_names),)
    mask = stock(pixel_values=views["pixel_values"], noise=draws["noise"]).mask
    assert torch.equal(mask == 0, draws["noise"].argsort(dim=1).argsort(dim=1) < 4)


def test_the_untrained_loss_is_that_of_the_mean_patch_at_each_place(objective, images):
    draws = objective.draw(16, step_generator(0, 0))
    size, patch = objective.size, objective.model.config.patch_size
    pixels = objective.views(images, draws)["pixel_values"].double().numpy().transpose(0, 2, 3, 1)
    grid = pixels.reshape(16, size // patch, patch, size // patch, patch, 3).transpose(0, 1, 3, 2, 4, 5)
    patches = grid.reshape(16, -1, patch * patch * 3)
    centred = patches - patches.mean(-1, keepdims=True)
    targets = centred / np.sqrt(patches.var(-1, ddof=1, keepdims=True) + 1e-6)
    errors = (targets - targets.mean(0)) ** 2
    assert objective.untrained_loss(images, draws) == pytest.approx(errors.mean() * 16 / 15, rel=1e-5)


def test_the_mean_over_parts_is_the_loss_of_the_whole(objective, images):
    views = objective.views(images, objective.draw(16, step_generator(0, 3)))
    whole = objective(views)[0]
    parts = [
        objective({name: values[part] for name, values in views.items()})[0] for part in torch.arange(16).split(4)
    ]
    torch.testing.assert_close(torch.stack(parts).mean(), whole)


def test_the_probed_encoder_sees_every_patch(objective, images):
    pixels = objective.views(images, objective.draw(16, step_generator(0, 3)))["pixel_values"]
    assert objective.encoder is objective.model.vit
    states = objective.encoder.eval()(pixel_values=pixels).last_hidden_state
    assert states.shape == (16, 17, 32)


def test_previews_show_whole_images_with_hidden_patches_gray(objective, images):
    draws = objective.draw(2, step_generator(0, 3))
    objective.train()
    rows = objective.preview(images[:2], draws)
    assert objective.training and objective.model.training
    assert [len(row) for row in rows] == [3, 3] and len(objective.preview_titles) == 3
    for image, noise, (original, masked, painted) in zip(images[:2], draws["noise"], rows, strict=True):
        expected = functional.resize(image, [32, 32], InterpolationMode.BICUBIC) / 255
        assert (original - expected).abs().max() < 2 / 255
        hidden = (noise.argsort().argsort() >= 4).view(4, 4).repeat_interleave(8, 0).repeat_interleave(8, 1)
        assert torch.equal(masked[:, ~hidden], original[:, ~hidden])
        assert torch.equal(painted[:, ~hidden], original[:, ~hidden])
        assert (masked[:, hidden] == 0.5).all()
        assert (painted[:, hidden] != original[:, hidden]).float().mean() > 0.9
