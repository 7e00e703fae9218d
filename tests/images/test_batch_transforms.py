"""Transforms of batches against torchvision, image by image."""

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import InterpolationMode, functional

from retfound_hf.errors import BadArgumentError, BadDataError
from retfound_hf.images import batch_transforms
from retfound_hf.images.batch_transforms import (
    blur,
    crop_resize,
    draw_crops,
    draw_flips,
    jitter_colour,
    resize_by_products,
)  # fmt: skip

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SCALE, RATIO = (0.2, 1.0), (3 / 4, 4 / 3)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(params=[crop_resize, resize_by_products])
def resize(request):
    """The way of a CPU and that of a GPU."""
    return request.param


def noise(generator: torch.Generator, count: int, height: int, width: int, low: int = 0, high: int = 256) -> Tensor:
    """The hardest content: independent pixels."""
    return torch.randint(low, high, (count, 3, height, width), generator=generator).to(torch.uint8)


def one_by_one(images: Tensor, crops: Tensor, size: int, flips: Tensor | None = None) -> Tensor:
    """torchvision's result, image by image."""
    made = []
    for i, image in enumerate(images):
        resized = functional.resized_crop(
            image, *crops[i].tolist(), size=[size, size], interpolation=InterpolationMode.BICUBIC, antialias=True
        )
        made.append(resized.flip(-1) if flips is not None and flips[i] else resized)
    return torch.stack(made).float()


def assert_within_rounding(ours: Tensor, theirs: Tensor) -> None:
    """torchvision rounds twice, between the passes and after, each time by half a level at most."""
    difference = (ours - theirs).abs()
    assert difference.mean(dim=(1, 2, 3)).max() < 0.4
    assert difference.max() < 1.3


@pytest.mark.parametrize("height, width, size", [(256, 256, 224), (96, 160, 64), (160, 90, 96), (48, 48, 112)])
def test_random_crops_equal_torchvision(generator, resize, height, width, size):
    images = noise(generator, 24, height, width)
    crops, flips = draw_crops(24, height, width, generator), draw_flips(24, generator)
    assert 0 < flips.sum() < 24
    assert_within_rounding(resize(images, crops, size, flips), one_by_one(images, crops, size, flips))


@pytest.mark.parametrize(
    "crop",
    [(0, 0, 1, 1), (119, 159, 1, 1), (5, 9, 1, 100), (3, 7, 90, 2), (100, 140, 20, 20), (0, 0, 120, 160),
     (11, 0, 32, 32)],
)  # fmt: skip
@pytest.mark.parametrize("size", [3, 7, 32, 224])
def test_extreme_crops_equal_torchvision(generator, resize, crop, size):
    images = noise(generator, 2, 120, 160)
    crops = torch.tensor([crop, crop])
    flips = torch.tensor([False, True])
    difference = (resize(images, crops, size, flips) - one_by_one(images, crops, size, flips)).abs()
    assert difference.max() < 1.3


def test_a_cpu_gives_torchvisions_result_to_the_bit(generator):
    images, crops = noise(generator, 6, 64, 80), draw_crops(6, 64, 80, generator)
    flips = draw_flips(6, generator)
    assert torch.equal(crop_resize(images, crops, 48, flips), one_by_one(images, crops, 48, flips))


def test_without_rounding_the_result_is_that_of_torchvision_in_float(generator):
    # Away from 0 and 255 nothing is clamped, so that float resampling is the same to float precision.
    images = noise(generator, 24, 128, 100, low=100, high=156)
    crops = draw_crops(24, 128, 100, generator, scale=(0.01, 1.0))
    assert (resize_by_products(images, crops, 64) - one_by_one(images.float(), crops, 64)).abs().max() < 2e-3


def test_overshoot_is_clamped_between_the_passes_as_in_8_bits(generator, resize):
    images = (torch.rand(8, 3, 128, 128, generator=generator) < 0.5).to(torch.uint8) * 255
    crops = draw_crops(8, 128, 128, generator)
    ours = resize(images, crops, 112)
    assert ours.min() == 0 and ours.max() == 255
    assert_within_rounding(ours, one_by_one(images, crops, 112))


def test_other_channel_counts_layouts_and_integers_are_taken(generator, resize):
    images = noise(generator, 4, 40, 56)
    crops = draw_crops(4, 40, 56, generator)
    expected = resize(images, crops, 32)
    assert torch.equal(resize(images.contiguous(memory_format=torch.channels_last), crops.int(), 32), expected)
    assert torch.allclose(resize(images[:, 1:2], crops, 32), expected[:, 1:2], atol=1e-3)
    assert expected.is_contiguous() and expected.dtype == torch.float32
    assert resize(images[:0], crops[:0], 32).shape == (0, 3, 32, 32)


def test_chunks_do_not_change_the_result(generator, monkeypatch):
    images, crops, flips = noise(generator, 7, 64, 64), draw_crops(7, 64, 64, generator), draw_flips(7, generator)
    whole = resize_by_products(images, crops, 48, flips)
    monkeypatch.setattr(batch_transforms, "CHUNK_BYTES", 1)
    assert torch.allclose(resize_by_products(images, crops, 48, flips), whole, atol=1e-3)


def test_autocast_does_not_change_the_result(generator, resize):
    images, crops = noise(generator, 4, 64, 64), draw_crops(4, 64, 64, generator)
    expected = resize(images, crops, 48)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(resize(images, crops, 48), expected)


@pytest.mark.parametrize("truncates", [False, True])
def test_tf32_keeps_the_result_within_a_level(generator, monkeypatch, truncates):
    """Both products with their operands cut to TF32's 10-bit mantissa, as a GPU may take them."""
    images, crops = noise(generator, 8, 128, 128), draw_crops(8, 128, 128, generator)
    expected, theirs = resize_by_products(images, crops, 112), one_by_one(images, crops, 112)

    def cut(x: Tensor) -> Tensor:
        bits = x.contiguous().view(torch.int32)
        return ((bits if truncates else bits + 0x1000) & ~0x1FFF).view(torch.float32)

    product = torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda a, b: product(cut(a), cut(b)))
    ours = resize_by_products(images, crops, 112)
    assert 0 < (ours - expected).abs().mean() < 0.15
    assert (ours - theirs).abs().mean(dim=(1, 2, 3)).max() < 0.5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_under_autocast_and_tf32_gives_the_same(generator):
    images, crops = noise(generator, 32, 256, 256), draw_crops(32, 256, 256, generator)
    flips = draw_flips(32, generator)
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            ours = crop_resize(images.cuda(), crops, 224, flips).cpu()
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    assert (ours - one_by_one(images, crops, 224, flips)).abs().mean(dim=(1, 2, 3)).max() < 1


class Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.called: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.called.append(str(function))
        return function(*args, **(kwargs or {}))


def test_nothing_waits_for_the_device_and_nothing_loops_over_images(generator):
    waits = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "unique", "item")
    counts = []
    for count in (1, 4):
        images, crops, flips = (
            noise(generator, count, 64, 64), draw_crops(count, 64, 64, generator), draw_flips(count, generator),
        )  # fmt: skip
        mean, std = torch.tensor(MEAN), torch.tensor(STD)
        with Recorder() as recorder:
            batch_transforms.normalize(resize_by_products(images, crops, 48, flips), mean, std)
        assert not [name for name in recorder.called if any(wait in name for wait in waits)]
        counts.append(len(recorder.called))
    assert counts[0] == counts[1]
    with Recorder() as recorder:
        assert crops[0, 0].item() >= 0
    assert any("_local_scalar_dense" in name for name in recorder.called)


@pytest.mark.parametrize("height, width", [(256, 256), (200, 320)])
def test_crops_have_the_distribution_of_torchvision(generator, height, width):
    ours = draw_crops(4000, height, width, generator)
    torch.manual_seed(1)
    blank = torch.empty(3, height, width, device="meta")
    theirs = torch.tensor([RandomResizedCrop.get_params(blank, list(SCALE), list(RATIO)) for _ in range(4000)])
    for name, of in {
        "top": lambda c: c[:, 0], "left": lambda c: c[:, 1], "area": lambda c: c[:, 2] * c[:, 3],
        "ratio": lambda c: c[:, 3] / c[:, 2], "relative top": lambda c: (c[:, 0] + 0.5) / (height - c[:, 2] + 1),
        "relative left": lambda c: (c[:, 1] + 0.5) / (width - c[:, 3] + 1),
        "height by left": lambda c: c[:, 2] * (c[:, 1] + 1),
    }.items():  # fmt: skip
        assert ks_2samp(of(ours).double(), of(theirs).double()).pvalue > 1e-3, name


@pytest.mark.parametrize("height, width", [(10, 400), (400, 10), (10, 14), (1, 1)])
def test_where_no_attempt_fits_the_crop_is_torchvisions_central_one(generator, height, width):
    # A scale above 1 never fits.
    theirs = RandomResizedCrop.get_params(torch.empty(3, height, width, device="meta"), [1.5, 1.6], list(RATIO))
    assert draw_crops(3, height, width, generator, scale=(1.5, 1.6)).tolist() == [list(theirs)] * 3


def test_draws_follow_the_generator_alone():
    def draw(count: int, seed: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return draw_crops(count, 256, 256, generator), draw_flips(count, generator)

    torch.manual_seed(0)
    first = draw(64, seed=3)
    torch.manual_seed(1)
    again = draw(64, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], draw(64, seed=4)[0])
    assert torch.equal(draw(1000, seed=3)[0][:64], first[0])
    assert len(first[0].unique(dim=0)) == 64
    assert draw(10_000, seed=3)[1].float().mean() == pytest.approx(0.5, abs=0.02)


def test_a_slice_of_a_global_batch_is_augmented_as_in_the_whole(generator, resize):
    images, crops, flips = noise(generator, 8, 64, 64), draw_crops(8, 64, 64, generator), draw_flips(8, generator)
    whole = resize(images, crops, 48, flips)
    for rank in range(4):
        own = slice(2 * rank, 2 * rank + 2)
        assert torch.allclose(resize(images[own], crops[own], 48, flips[own]), whole[own], atol=1e-3)


@pytest.mark.parametrize("kind", [tuple, torch.tensor])
def test_normalisation_equals_torchvision(generator, kind):
    pixels = 255 * torch.rand(3, 3, 20, 30, generator=generator)
    expected = functional.normalize(pixels / 255, list(MEAN), list(STD))
    assert torch.allclose(batch_transforms.normalize(pixels, kind(MEAN), kind(STD)), expected, atol=1e-6)


@pytest.mark.parametrize(
    "change",
    [{"images": torch.zeros(2, 3, 8, 8)}, {"images": torch.zeros(3, 8, 8, dtype=torch.uint8)},
     {"crops": torch.tensor([[0, 0, 8, 8]])}, {"flips": torch.zeros(3, dtype=torch.bool)}, {"flips": torch.zeros(2)}],
)  # fmt: skip
def test_tensors_of_another_shape_or_type_are_refused(change):
    images, crops = torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.tensor([[0, 0, 8, 8]] * 2)
    with pytest.raises(BadDataError):
        crop_resize(**({"images": images, "crops": crops, "size": 4} | change))


def test_values_out_of_range_are_refused(generator):
    with pytest.raises(BadArgumentError) as error:
        crop_resize(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.tensor([[0, 0, 8, 8]]), 0)
    assert error.value.field == "size"
    for options in ({"scale": (0.5, 0.2)}, {"ratio": (0, 1)}):
        with pytest.raises(BadArgumentError) as error:
            draw_crops(1, 8, 8, generator, **options)
        assert {error.value.field: error.value.value} == options
    with pytest.raises(BadDataError):
        draw_crops(1, 0, 8, generator)


THREE = (functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation)


@pytest.fixture
def colours() -> torch.Tensor:
    """Smooth colours with gray, black and white places, and noise: uint8 (8, 3, 40, 40)."""
    generator = np.random.default_rng(0)
    y, x = np.mgrid[:40, :40] / 40
    waves = np.sin(2 * np.pi * (np.stack([x, y, x + y]) + generator.uniform(size=(8, 3, 1, 1))))
    pixels = 128 + 110 * waves + generator.normal(0, 10, (8, 3, 40, 40))
    pixels[:, :, :5, :5], pixels[:, :, :5, 5:10], pixels[:, :, :5, 10:15] = 0, 255, 90
    return torch.from_numpy(pixels.clip(0, 255).astype(np.uint8))


def numbers(count: int = 8, **strengths: float) -> dict[str, torch.Tensor]:
    drawn = batch_transforms.draw_jitter(count, torch.Generator().manual_seed(1), 1.0, **strengths)
    assert drawn["factors"].unique().numel() > 1
    return drawn


def test_mixed_orders_equal_torchvision_image_by_image(colours):
    drawn = numbers(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2)
    assert len({tuple(order) for order in drawn["order"].tolist()}) > 3
    expected = []
    for image, factors, order, turn in zip(
        colours / 255, drawn["factors"], drawn["order"], drawn["turns"], strict=True
    ):
        for operation in order.tolist():
            image = THREE[operation](image, factors[operation].item())
        expected.append(functional.adjust_hue(image, turn.item()))
    found = jitter_colour(colours.float(), drawn["factors"], drawn["order"], drawn["turns"])
    assert (found - 255 * torch.stack(expected)).abs().max() < 0.02
    assert (found - colours).abs().mean() > 10


@pytest.mark.parametrize("kernel_size", [3, 9, 23])
def test_blur_equals_torchvision_with_each_images_own_width(colours, kernel_size):
    sigmas = torch.tensor([0.0, 0.1, 0.3, 0.5, 1.0, 1.5, 2.0, 5.0])
    found = blur(colours.float(), sigmas, kernel_size)
    expected = [
        functional.gaussian_blur(image.float(), kernel_size, sigma.item()) if sigma else image.float()
        for image, sigma in zip(colours, sigmas, strict=True)
    ]
    assert (found - torch.stack(expected)).abs().max() < 0.01
    assert torch.equal(found[0], colours[0].float())


def test_grayscale_and_solarisation_touch_the_chosen_alone(colours):
    chosen = torch.arange(8) % 2 == 0
    gray, inverted = (
        batch_transforms.grayscale(colours.float(), chosen),
        batch_transforms.solarize(colours.float(), chosen),
    )
    for image, is_chosen, one, other in zip(colours, chosen, gray, inverted, strict=True):
        if is_chosen:
            assert (one - functional.rgb_to_grayscale(image, 3)).abs().max() < 1.01
            assert torch.equal(other, functional.solarize(image, 128).float())
        else:
            assert torch.equal(one, image.float()) and torch.equal(other, image.float())
    assert torch.equal(batch_transforms.to_gray(colours.float())[::2], gray[::2, :1])


def test_what_is_drawn_has_the_distribution_of_color_jitter():
    drawn = batch_transforms.draw_jitter(20_000, torch.Generator().manual_seed(0), 0.8, 0.4, 0.3, 0.2, 0.1)
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


def test_one_image_does_not_depend_on_the_others(colours):
    drawn = numbers(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2)
    whole = jitter_colour(colours.float(), drawn["factors"], drawn["order"], drawn["turns"])
    part = jitter_colour(colours[3:5].float(), *(drawn[name][3:5] for name in ("factors", "order", "turns")))
    assert torch.equal(whole[3:5], part)
    assert torch.allclose(blur(colours.float(), torch.ones(8), 5)[2:3], blur(colours[2:3].float(), torch.ones(1), 5))
