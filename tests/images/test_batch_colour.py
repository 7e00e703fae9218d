"""Colours of batches against torchvision's functional operations on the same numbers."""

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional

from retfound_hf.images.batch_transforms import (
    blur,
    draw_jitter,
    grayscale,
    jitter_colour,
    solarize,
    to_gray,
    turn_hue,
)

LEVEL = 1.0
THREE = (functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation)


@pytest.fixture
def images() -> torch.Tensor:
    """Smooth colours with gray, black and white places, and noise: uint8 (8, 3, 40, 40)."""
    generator = np.random.default_rng(0)
    y, x = np.mgrid[:40, :40] / 40
    waves = np.sin(2 * np.pi * (np.stack([x, y, x + y]) + generator.uniform(size=(8, 3, 1, 1))))
    pixels = 128 + 110 * waves + generator.normal(0, 10, (8, 3, 40, 40))
    pixels[:, :, :5, :5], pixels[:, :, :5, 5:10], pixels[:, :, :5, 10:15] = 0, 255, 90
    return torch.from_numpy(pixels.clip(0, 255).astype(np.uint8))


def assert_near(found: torch.Tensor, expected: list[torch.Tensor]) -> None:
    """Within a level on average, each image for itself; on 8-bit images torchvision cuts decimals off."""
    assert found.dtype == torch.float32
    assert found.min() >= 0 and found.max() <= 255
    for one, other in zip(found, expected, strict=True):
        assert (one - other.float()).abs().mean() < LEVEL


def numbers(count: int = 8, **strengths: float) -> dict[str, torch.Tensor]:
    drawn = draw_jitter(count, torch.Generator().manual_seed(1), 1.0, **strengths)
    assert drawn["factors"].unique().numel() > 1
    return drawn


def test_mixed_orders_equal_torchvision_image_by_image(images):
    drawn = numbers(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2)
    assert len({tuple(order) for order in drawn["order"].tolist()}) > 3
    expected = []
    for image, factors, order, turn in zip(
        images / 255, drawn["factors"], drawn["order"], drawn["turns"], strict=True
    ):
        for operation in order.tolist():
            image = THREE[operation](image, factors[operation].item())
        expected.append(functional.adjust_hue(image, turn.item()))
    found = jitter_colour(images.float(), drawn["factors"], drawn["order"], drawn["turns"])
    assert (found - 255 * torch.stack(expected)).abs().max() < 0.02
    assert (found - images).abs().mean() > 10


@pytest.mark.parametrize("operation", range(3))
def test_each_blend_alone_equals_torchvision(images, operation):
    factors = torch.ones(8, 3)
    factors[:, operation] = torch.linspace(0, 2, 8)
    order = torch.tensor([[0, 1, 2], [2, 1, 0]]).repeat(4, 1)
    expected = [
        THREE[operation](image, factor.item()) for image, factor in zip(images, factors[:, operation], strict=True)
    ]
    assert_near(jitter_colour(images.float(), factors, order), expected)


def test_hue_equals_torchvision_to_the_rounding(images):
    turns = torch.tensor([-0.5, -0.3, -0.02, 0.0, 0.02, 0.1, 0.33, 0.5])
    found = turn_hue(images.float(), turns)
    expected = [
        functional.adjust_hue(image / 255, turn.item()) * 255 for image, turn in zip(images, turns, strict=True)
    ]
    assert (found - torch.stack(expected)).abs().max() < 0.01
    assert (found[3] - images[3]).abs().max() < 0.01


@pytest.mark.parametrize("kernel_size", [3, 9, 23])
def test_blur_equals_torchvision_with_each_images_own_width(images, kernel_size):
    sigmas = torch.tensor([0.0, 0.1, 0.3, 0.5, 1.0, 1.5, 2.0, 5.0])
    found = blur(images.float(), sigmas, kernel_size)
    expected = [
        functional.gaussian_blur(image.float(), kernel_size, sigma.item()) if sigma else image.float()
        for image, sigma in zip(images, sigmas, strict=True)
    ]
    assert (found - torch.stack(expected)).abs().max() < 0.01
    assert torch.equal(found[0], images[0].float())


def test_grayscale_and_solarisation_touch_the_chosen_alone(images):
    chosen = torch.arange(8) % 2 == 0
    gray, inverted = grayscale(images.float(), chosen), solarize(images.float(), chosen)
    for image, is_chosen, one, other in zip(images, chosen, gray, inverted, strict=True):
        if is_chosen:
            assert (one - functional.rgb_to_grayscale(image, 3)).abs().max() < 1.01
            assert torch.equal(other, functional.solarize(image, 128).float())
        else:
            assert torch.equal(one, image.float()) and torch.equal(other, image.float())
    assert torch.equal(to_gray(images.float())[::2], gray[::2, :1])


def test_what_is_drawn_has_the_distribution_of_color_jitter():
    drawn = draw_jitter(20_000, torch.Generator().manual_seed(0), 0.8, 0.4, 0.3, 0.2, 0.1)
    untouched = (drawn["factors"] == 1).all(dim=1)
    assert untouched.float().mean() == pytest.approx(0.2, abs=0.01)
    assert (drawn["turns"][untouched] == 0).all()
    for values, centre, strength in zip(
        [*drawn["factors"][~untouched].T, drawn["turns"][~untouched]], (1, 1, 1, 0), (0.4, 0.3, 0.2, 0.1), strict=True
    ):
        assert values.mean() == pytest.approx(centre, abs=0.01)
        assert values.std() == pytest.approx(2 * strength / 12**0.5, rel=0.03)
        assert (values - centre).abs().max() <= strength + 1e-6
    codes = drawn["order"] @ torch.tensor([9, 3, 1])
    assert torch.equal(drawn["order"].sort(dim=1).values.unique(dim=0), torch.tensor([[0, 1, 2]]))
    assert codes.unique(return_counts=True)[1] / 20_000 == pytest.approx(1 / 6, abs=0.01)


def test_one_image_does_not_depend_on_the_others(images):
    drawn = numbers(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2)
    whole = jitter_colour(images.float(), drawn["factors"], drawn["order"], drawn["turns"])
    part = jitter_colour(images[3:5].float(), *(drawn[name][3:5] for name in ("factors", "order", "turns")))
    assert torch.equal(whole[3:5], part)
    assert torch.allclose(blur(images.float(), torch.ones(8), 5)[2:3], blur(images[2:3].float(), torch.ones(1), 5))
