"""Augmentation: sizes and ranges, the evaluation transform without it, rates of its random parts, seeds."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from retfound_hf import RetFoundImageProcessor
from retfound_hf.finetuning.trainer import Mix, TrainingPixels, rand_augment
from retfound_hf.inference.predict import EvaluationPixels

MEAN, DEVIATION = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


@pytest.fixture
def processor():
    return RetFoundImageProcessor.for_image_size(32)


def noise_images(count: int, size: tuple[int, int] = (70, 64), seed: int = 0) -> list[Image.Image]:
    generator = np.random.default_rng(seed)
    return [Image.fromarray(generator.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)) for _ in range(count)]


def smooth_images(count: int, side: int = 64) -> list[Image.Image]:
    ramp = np.linspace(60, 190, side)
    image = np.stack([np.add.outer(ramp, ramp) / 2, np.tile(ramp, (side, 1)), np.full((side, side), 120.0)], axis=-1)
    return [Image.fromarray(image.astype(np.uint8))] * count


@pytest.mark.parametrize("augmentation", ["recipe", "light", "none"])
def test_shape_type_and_normalisation(processor, augmentation):
    pixels = TrainingPixels(processor, augmentation)(noise_images(5))
    assert pixels.shape == (5, 3, 32, 32)
    assert pixels.dtype == torch.float32
    if augmentation != "recipe":  # whose erased boxes are filled with normal noise
        unit = pixels * DEVIATION[:, None, None] + MEAN[:, None, None]
        assert unit.min() > -1e-6
        assert unit.max() < 1 + 1e-6


@pytest.mark.parametrize("options", [{}, {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}])
@pytest.mark.parametrize("side", [32, 256])
def test_none_is_the_evaluation_transform_to_the_bit(options, side):
    processor = RetFoundImageProcessor.for_image_size(side, **options)
    images = noise_images(4, size=(70, 64))
    expected = processor(images, do_fundus_crop=False, return_tensors="pt")["pixel_values"]
    assert torch.equal(TrainingPixels(processor, "none")(images), expected)


def test_training_without_augmentation_sees_what_evaluation_sees(job):
    made = job(augmentation="none")
    train = [image["image"] for image in made.splits["train"].images]
    files = list(made.splits["train"].rows["image"])
    expected = made.classifier.processor(files, return_tensors="pt")["pixel_values"]
    assert torch.equal(TrainingPixels(made.classifier.processor, "none")(train), expected)
    assert torch.equal(EvaluationPixels(made.classifier.processor)(train), expected)


def test_the_recipe_keeps_more_pixels_to_augment(job):
    prepared = job(augmentation="recipe").splits
    assert min(prepared["train"].images[0]["image"].size) == 48  # the file's own: never enlarged
    assert prepared["val"].images[0]["image"].size == (37, 37)


@pytest.mark.parametrize("augmentation", ["recipe", "light"])
def test_draws_differ_and_a_seed_repeats_them(processor, augmentation):
    augment, images = TrainingPixels(processor, augmentation), smooth_images(6)
    torch.manual_seed(3)
    first = augment(images)
    second = augment(images)
    torch.manual_seed(3)
    again = augment(images)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert len({tuple(image.flatten().tolist()) for image in first}) == 6


def test_light_is_flip_and_a_crop_of_at_least_half(processor):
    side = 64
    ramp = np.tile(np.linspace(0, 255, side), (side, 1))  # brightness tells the column
    image = Image.fromarray(np.repeat(ramp[..., None], 3, axis=2).astype(np.uint8))
    torch.manual_seed(0)
    pixels = TrainingPixels(processor, "light")([image] * 300)
    unit = (pixels * DEVIATION[:, None, None] + MEAN[:, None, None])[:, 0].mean(dim=1)
    width = (unit[:, -1] - unit[:, 0]) * 32 / 31  # share of the columns that is seen, negative when flipped
    # Half of the area at an aspect of 3/4 to 4/3 is 0.61 of the width at least.
    assert width.abs().min() > 0.58
    assert width.abs().max() <= 1.03
    assert 0.4 < (width < 0).float().mean() < 0.6


def test_rand_augment_applies_one_operation_on_average():
    image = v2.PILToTensor()(noise_images(1)[0])
    augment = rand_augment()
    original = v2.RandAugment._apply_image_or_video_transform
    calls = []

    def counted(self, *args, **kwargs):
        calls.append(args[1])
        return original(self, *args, **kwargs)

    v2.RandAugment._apply_image_or_video_transform = counted
    try:
        torch.manual_seed(0)
        counts = []
        for _ in range(800):
            before = len(calls)
            augment(image)
            counts.append(len(calls) - before)
    finally:
        v2.RandAugment._apply_image_or_video_transform = original
    shares = np.bincount(counts, minlength=3) / 800
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.06)
    assert len(set(calls)) >= 12  # of the operations, none dominates
    assert max(calls.count(name) for name in set(calls)) < 0.2 * len(calls)


def test_strengths_scatter_around_nine_of_ten():
    choice = rand_augment().transforms[0].transforms[0]
    levels = np.array([transform.magnitude for transform in choice.transforms])
    weights = np.array(choice.p) / np.sum(choice.p)
    tenths = levels / 30 * 10
    mean = (weights * tenths).sum()
    assert mean == pytest.approx(9, abs=0.1)
    assert np.sqrt((weights * (tenths - mean) ** 2).sum()) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("probability", [0.0, 0.25, 1.0])
def test_random_erasing_rate(processor, probability):
    gray = [Image.new("RGB", (40, 40), (128, 128, 128))] * 400
    torch.manual_seed(0)
    augment = TrainingPixels(processor, "recipe", random_erasing=probability)
    augment.per_image = v2.Compose([v2.PILToTensor(), v2.Resize([32, 32])])
    pixels = augment(gray)
    erased = (pixels != pixels[:, :, :1, :1].median(dim=0).values).any(dim=1).flatten(1)
    assert erased.any(dim=1).float().mean() == pytest.approx(probability, abs=0.06)
    if probability:
        share = erased.float().mean(dim=1)[erased.any(dim=1)]
        assert share.max() < 0.36  # a third of the area at most
        values = pixels.permute(0, 2, 3, 1).reshape(400, -1, 3)[erased]
        assert values.std() == pytest.approx(1, abs=0.05)  # noise of the normalised images' own scale


def test_augmented_images_stay_plausible(processor):
    torch.manual_seed(0)
    images = smooth_images(300)
    plain = TrainingPixels(processor, "none")(images[:1])
    recipe = TrainingPixels(processor, "recipe")(images)
    means = recipe.mean(dim=(1, 2, 3))
    assert means.mean() == pytest.approx(plain.mean().item(), abs=0.25)
    assert means.abs().max() < 2.7  # black or white throughout would be -2 or 2.6
    assert (recipe.flatten(1).std(dim=1) > 0.05).float().mean() > 0.97


@pytest.mark.parametrize("options", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}])
def test_mixing_gives_labels_that_sum_to_one(options):
    torch.manual_seed(0)
    pixels, labels = torch.randn(8, 3, 32, 32), torch.arange(8) % 3
    mixed, soft = Mix(3, **options)(pixels, labels)
    assert mixed.shape == pixels.shape
    assert soft.shape == (8, 3)
    assert torch.allclose(soft.sum(dim=1), torch.ones(8))
    assert (soft >= 0).all()


def test_mixup_mixes_pixels_as_it_mixes_labels():
    torch.manual_seed(0)
    values = torch.tensor([0.0, 1.0, 0.0, 1.0])
    pixels = values[:, None, None, None].expand(4, 3, 8, 8).contiguous()
    mixed, soft = Mix(2, mixup=1.0)(pixels, values.long())
    assert torch.allclose(mixed[:, 0, 0, 0], soft[:, 1], atol=1e-6)
    cut, soft = Mix(2, cutmix=1.0)(pixels, values.long())
    assert torch.allclose(cut.mean(dim=(1, 2, 3)), soft[:, 1], atol=1e-6)
