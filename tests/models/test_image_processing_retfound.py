"""The image processor against its steps written out, on every kind of image, and its geometry."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import InterpolationMode, functional
from transformers import AutoImageProcessor

from retfound_hf import RetFoundConfig, RetFoundImageProcessor
from retfound_hf.errors import UnreadableImageError
from retfound_hf.images.field_of_view import crop_field_of_view
from retfound_hf.images.reading import resize

MEAN = np.array([0.485, 0.456, 0.406])
STD = np.array([0.229, 0.224, 0.225])


def fundus(width: int = 400, height: int = 300) -> Image.Image:
    """A lit disc with a bright spot and a texture, off the centre of a dark surround."""
    y, x = np.mgrid[:height, :width]
    radius = 0.4 * height
    inside = np.hypot(x - 0.45 * width, y - 0.5 * height) < radius
    spot = 70 * np.exp(-((x - 0.45 * width) ** 2 + (y - 0.3 * height) ** 2) / (0.1 * height) ** 2)
    texture = np.random.default_rng(0).integers(-6, 7, (height, width, 1))
    value = np.stack([150 + spot, 90 + spot, 40 + spot], axis=2) + texture
    return Image.fromarray(np.where(inside[..., None], value, 6).clip(0, 255).astype(np.uint8))


def plain(width: int = 300, height: int = 200) -> Image.Image:
    """An image without dark surround, smooth enough for two bicubic filters to agree."""
    y, x = np.mgrid[:height, :width]
    planes = [128 + 60 * np.sin(x / 17), 128 + 60 * np.cos(y / 13), 128 + 50 * np.sin((x + y) / 23)]
    return Image.fromarray(np.stack(planes, axis=2).astype(np.uint8))


def by_hand(image: Image.Image, resized: int = 256, cropped: int = 224) -> np.ndarray:
    """Resize, crop the centre, normalise: (3, cropped, cropped)."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    pixels = functional.resize(pixels, [resized, resized], InterpolationMode.BICUBIC, antialias=True)
    start = (resized - cropped) // 2
    values = pixels.permute(1, 2, 0).numpy()[start : start + cropped, start : start + cropped] / 255
    return ((values - MEAN) / STD).transpose(2, 0, 1)


def pixels_of(processor: RetFoundImageProcessor, image, **kwargs) -> torch.Tensor:
    return processor(image, return_tensors="pt", **kwargs).pixel_values


def to_bytes(pixels: torch.Tensor) -> np.ndarray:
    """Normalised pixels (1, 3, height, width) back to 0-255, float."""
    return (pixels[0].permute(1, 2, 0).numpy() * STD + MEAN) * 255


@pytest.fixture(scope="module")
def processor() -> RetFoundImageProcessor:
    return RetFoundImageProcessor()


def test_equals_its_steps_written_out(processor):
    image = fundus()
    found = pixels_of(processor, image)
    assert found.shape == (1, 3, 224, 224) and found.dtype == torch.float32
    cropped = crop_field_of_view(image)
    assert cropped.size != image.size and cropped.size[0] == cropped.size[1]
    np.testing.assert_allclose(found[0].numpy(), by_hand(cropped), atol=1e-6)


def test_fundus_crop_finds_the_disc(processor):
    """The disc of radius 120 fills the frame of 256, of which the centre 224 is left: the corners alone are dark."""
    pixels = to_bytes(pixels_of(processor, fundus(), do_center_crop=False))
    bright = pixels.max(axis=2) > 60
    rows, columns = np.flatnonzero(bright.any(axis=1)), np.flatnonzero(bright.any(axis=0))
    for edges in (rows, columns):
        assert edges[0] <= 4 and edges[-1] >= 251
    assert bright.mean() == pytest.approx(np.pi / 4, abs=0.02)


def test_fundus_crop_is_an_option(processor):
    image = fundus()
    whole = pixels_of(processor, image, do_fundus_crop=False)
    np.testing.assert_allclose(whole[0].numpy(), by_hand(image), atol=1e-6)
    never = RetFoundImageProcessor(do_fundus_crop=False)
    assert torch.equal(pixels_of(never, image), whole)
    assert torch.equal(pixels_of(never, image, do_fundus_crop=True), pixels_of(processor, image))


def test_images_without_surround_are_left_alone(processor):
    """OCT B-scans and crops of crops."""
    oct_scan = Image.fromarray((np.random.default_rng(1).random((200, 300)) * 90).astype(np.uint8))
    for image in (plain(), oct_scan.convert("RGB"), crop_field_of_view(fundus())):
        np.testing.assert_allclose(pixels_of(processor, image)[0].numpy(), by_hand(image), atol=1e-6)


def test_close_to_the_resize_of_pillow(processor):
    image = plain()
    start = (256 - 224) // 2
    resized = np.array(image.resize((256, 256), Image.Resampling.BICUBIC))[start : start + 224, start : start + 224]
    assert np.abs(to_bytes(pixels_of(processor, image)) - resized).mean() <= 2
    shrunk = fundus(1200, 900).crop((160, 90, 880, 810))
    resized = np.array(shrunk.resize((256, 256), Image.Resampling.BICUBIC))[start : start + 224, start : start + 224]
    found = to_bytes(pixels_of(processor, shrunk, do_fundus_crop=False))
    assert np.abs(found - resized).mean() <= 2  # antialiased: a bare bicubic filter is off by the texture


def test_resize_is_the_resize_of_the_processor_to_the_bit(processor):
    image = fundus()
    stored = np.array(resize(crop_field_of_view(image), {"height": 256, "width": 256}))
    resized = processor(
        image, do_center_crop=False, do_rescale=False, do_normalize=False, return_tensors="pt"
    ).pixel_values
    assert resized.dtype == torch.uint8
    assert np.array_equal(resized[0].permute(1, 2, 0).numpy(), stored)
    again = pixels_of(processor, Image.fromarray(stored), do_resize=False, do_fundus_crop=False)
    assert torch.equal(again, pixels_of(processor, image))


@pytest.fixture
def forms(tmp_path):
    """The same image in every form that is accepted."""
    image = fundus()
    array = np.array(image)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    path = tmp_path / "image.png"
    path.write_bytes(buffer.getvalue())
    return {
        "pil": image, "path": path, "string": str(path), "bytes": buffer.getvalue(), "numpy": array,
        "channels first": np.ascontiguousarray(array.transpose(2, 0, 1)),
        "tensor": torch.from_numpy(array).permute(2, 0, 1),
    }  # fmt: skip


def test_every_form_gives_the_same_pixels(processor, forms):
    expected = pixels_of(processor, forms["pil"])
    for name, form in forms.items():
        assert torch.equal(pixels_of(processor, form), expected), name


def test_a_list_gives_a_batch_of_single_results(processor, forms):
    batch = pixels_of(processor, [*forms.values(), plain()])
    assert batch.shape == (len(forms) + 1, 3, 224, 224)
    for row, form in zip(batch, [*forms.values(), plain()], strict=True):
        assert torch.equal(row[None], pixels_of(processor, form))


def assert_shows(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1.0) -> None:
    """Equal to within `tolerance` of 255 levels on average."""
    assert np.abs(to_bytes(found) - to_bytes(expected)).mean() <= tolerance


def test_grayscale(processor):
    gray = fundus().convert("L")
    found = pixels_of(processor, gray)
    assert torch.equal(found, pixels_of(processor, gray.convert("RGB")))
    array = np.array(gray)
    for form in (array, array[..., None], array[None], torch.from_numpy(array)):
        assert torch.equal(found, pixels_of(processor, form))


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_sixteen_bit_colours_share_one_scale(processor, dtype):
    deep = np.array(fundus()).astype(dtype) * 257
    deep[0, 0] = 65535
    assert_shows(pixels_of(processor, deep), pixels_of(processor, fundus()), 0.1)


def test_cmyk(processor, tmp_path):
    image = fundus()
    image.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    assert Image.open(tmp_path / "cmyk.jpg").mode == "CMYK"
    assert_shows(pixels_of(processor, tmp_path / "cmyk.jpg"), pixels_of(processor, image), 3)  # of JPEG


def test_unreadable_files_are_named(processor, tmp_path):
    path = tmp_path / "broken.jpg"
    path.write_bytes(b"not an image")
    for name in (path, tmp_path / "absent.png"):
        with pytest.raises(UnreadableImageError) as error:
            processor(str(name))
        assert error.value.path == str(name)


@pytest.mark.parametrize(("side", "resized"), [(224, 256), (384, 384), (112, 128), (64, 73)])
def test_sizes_of_other_networks(side, resized):
    """Up to 224 a margin of 256/224 is cut off, above none, as in the official evaluation transform."""
    made = RetFoundImageProcessor.for_image_size(side, do_fundus_crop=False)
    assert dict(made.size) == {"height": resized, "width": resized}
    assert dict(made.crop_size) == {"height": side, "width": side}
    found = pixels_of(made, plain())
    np.testing.assert_allclose(found[0].numpy(), by_hand(plain(), resized, side), atol=1e-6)


@pytest.mark.parametrize("crop", [True, False])
def test_settings_survive_saving(crop, tmp_path):
    made = RetFoundImageProcessor.for_image_size(112, do_fundus_crop=crop)
    made.save_pretrained(tmp_path)
    RetFoundConfig().save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(loaded) is RetFoundImageProcessor
    assert loaded.do_fundus_crop is crop
    assert loaded.to_dict() == made.to_dict()
    assert torch.equal(pixels_of(loaded, fundus()), pixels_of(made, fundus()))


def test_prepared_values_are_not_cropped(processor):
    """A float tensor has been scaled by its owner, who says so by do_rescale."""
    pixels = torch.rand(3, 224, 224, generator=torch.Generator().manual_seed(0))
    found = pixels_of(processor, pixels, do_rescale=False, do_resize=False)
    expected = (pixels.numpy() - MEAN[:, None, None]) / STD[:, None, None]
    np.testing.assert_allclose(found[0].numpy(), expected, atol=1e-5)


def coordinates(width: int, height: int, disc: tuple[float, float, float] | None = None) -> Image.Image:
    """Red is x, green is y, blue is lit; black outside `disc` (centre x, y, radius)."""
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([x, y, np.full_like(x, 250)], axis=2).astype(np.uint8)
    if disc is not None:
        pixels[np.hypot(x + 0.5 - disc[0], y + 0.5 - disc[1]) > disc[2]] = 0
    return Image.fromarray(pixels)


CASES = {
    "scan": (coordinates(240, 180), {}), "upright": (coordinates(120, 250), {}),
    "field": (coordinates(250, 190, (120, 97, 80)), {}),
    "field cut by the sensor": (coordinates(250, 150, (130, 75, 100)), {}),
    "large input": (coordinates(240, 180), {"image_size": 384}),
    "odd margin": (
        coordinates(200, 200), {"size": {"height": 61, "width": 58}, "crop_size": {"height": 48, "width": 45}}
    ),
    "shortest edge": (
        coordinates(240, 150), {"size": {"shortest_edge": 70}, "crop_size": {"height": 64, "width": 64}}
    ),
    "padded": (coordinates(240, 150), {"size": {"height": 40, "width": 51}, "crop_size": {"height": 48, "width": 64}}),
    "no crop": (coordinates(240, 150), {"do_center_crop": False}),
    "no resize": (coordinates(240, 250), {"do_resize": False}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_window_is_where_the_input_comes_from(name):
    image, options = CASES[name]
    size = options.get("image_size", 224)
    options = {key: value for key, value in options.items() if key != "image_size"}
    # Colours as they are: no rescaling, no standardisation.
    stored = RetFoundImageProcessor.for_image_size(size, do_rescale=False, do_normalize=False).to_dict()
    processor = RetFoundImageProcessor(**{**stored, **options})
    seen = processor(image, return_tensors="np")["pixel_values"][0]
    window = processor.input_window(image)
    height, width = seen.shape[1:]
    x = window.left + (np.arange(width) + 0.5) * (window.right - window.left) / width - 0.5
    y = window.top + (np.arange(height) + 0.5) * (window.bottom - window.top) / height - 0.5
    middle = slice(height // 3, 2 * height // 3), slice(width // 3, 2 * width // 3)  # lit, and off the edges
    assert seen[2][middle].min() > 240
    assert np.abs(seen[0][middle] - x[middle[1]]).max() < 0.75
    assert np.abs(seen[1][middle] - y[middle[0], None]).max() < 0.75
    # The way back: the input laid on the image shows every pixel's own coordinate.
    back_x, back_y = (window.place(seen[channel], image.size) for channel in (0, 1))
    left, right = round(x[middle[1]][0]) + 1, round(x[middle[1]][-1]) - 1
    top, bottom = round(y[middle[0]][0]) + 1, round(y[middle[0]][-1]) - 1
    assert right - left > 10 and bottom - top > 10
    assert np.abs(back_x[top:bottom, left:right] - np.arange(left, right)).max() < 1
    assert np.abs(back_y[top:bottom, left:right] - np.arange(top, bottom)[:, None]).max() < 1
