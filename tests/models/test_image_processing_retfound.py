"""The image processor against its steps written out, on every kind of image, and its geometry."""

import base64
import contextlib
import functools
import io
import json
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import InterpolationMode, functional
from transformers import AutoImageProcessor, ViTImageProcessor, pipeline

from retfound_hf import RetFoundConfig, RetFoundImageProcessor
from retfound_hf.errors import BadArgumentError, BadDataError, UnreadableImageError
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
    """The disc of radius 120 fills the frame: the corners alone are dark."""
    pixels = to_bytes(pixels_of(processor, fundus(), do_center_crop=False))
    assert pixels.shape == (224, 224, 3)
    bright = pixels.max(axis=2) > 60
    rows, columns = np.flatnonzero(bright.any(axis=1)), np.flatnonzero(bright.any(axis=0))
    for edges in (rows, columns):
        assert edges[0] <= 4 and edges[-1] >= 219
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
        image, size=256, crop_pct=1.0, do_rescale=False, do_normalize=False, return_tensors="pt"
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
    assert dict(made.size) == dict(made.crop_size) == {"height": side, "width": side}
    assert made.resized_size == {"height": resized, "width": resized}
    found = pixels_of(made, plain())
    np.testing.assert_allclose(found[0].numpy(), by_hand(plain(), resized, side), atol=1e-6)


@pytest.mark.parametrize(
    "options", [{}, {"do_fundus_crop": False}, {"size": {"shortest_edge": 112}}, {"crop_pct": 0.7}]
)
def test_settings_survive_saving(options, tmp_path):
    made = RetFoundImageProcessor(**{"size": 112, **options})
    made.save_pretrained(tmp_path)
    RetFoundConfig().save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(loaded) is RetFoundImageProcessor
    assert loaded.to_dict() == made.to_dict()
    assert torch.equal(pixels_of(loaded, fundus()), pixels_of(made, fundus()))


def square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


@pytest.mark.parametrize(
    ("size", "crop"),
    [(square(256), square(224)), (square(73), square(64)), (square(384), square(384)), (square(300), square(224)),
     ({"height": 61, "width": 58}, {"height": 48, "width": 45}), (square(40), {"height": 48, "width": 64}),
     ({"shortest_edge": 256}, square(224)), ({"shortest_edge": 70}, {"height": 64, "width": 48})],
)  # fmt: skip
def test_files_of_the_older_kind_give_the_pixels_that_they_gave(size, crop, tmp_path):
    """Their `size` is what images are resized to, their `crop_size` the input."""
    stored = {"size": size, "crop_size": crop, "do_fundus_crop": False, "do_center_crop": True, "resample": 3}
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps({**stored, "image_processor_type": "RetFoundImageProcessor"}))
    RetFoundConfig().save_pretrained(tmp_path)
    image = plain(301, 200)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    target = [size["shortest_edge"]] if "shortest_edge" in size else [size["height"], size["width"]]
    pixels = functional.resize(pixels, target, InterpolationMode.BICUBIC, antialias=True)
    pixels = functional.center_crop(pixels, [crop["height"], crop["width"]]).permute(1, 2, 0).numpy()
    expected = ((pixels / 255 - MEAN) / STD).transpose(2, 0, 1)
    for _again in range(2):
        loaded = AutoImageProcessor.from_pretrained(tmp_path)
        assert dict(loaded.size) == crop
        np.testing.assert_allclose(pixels_of(loaded, image)[0].numpy(), expected, atol=1e-6)
        loaded.save_pretrained(tmp_path)  # in the newer kind
    direct = pixels_of(RetFoundImageProcessor(do_fundus_crop=False), image, size=size, crop_size=crop)
    np.testing.assert_allclose(direct[0].numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("size", [96, (96, 64), {"shortest_edge": 96}, {"height": 96, "width": 64}])
def test_another_size_is_the_input_wherever_it_is_given(size, tmp_path):
    RetFoundImageProcessor().save_pretrained(tmp_path)
    RetFoundConfig().save_pretrained(tmp_path)
    expected = pixels_of(RetFoundImageProcessor(size=size), fundus())
    assert expected.shape[2:] in ((96, 96), (96, 64))
    assigned = RetFoundImageProcessor()
    assigned.size = size
    found = {
        "loading": pixels_of(AutoImageProcessor.from_pretrained(tmp_path, size=size), fundus()),
        "a call": pixels_of(AutoImageProcessor.from_pretrained(tmp_path), fundus(), size=size),
        "an assignment": pixels_of(assigned, fundus()),
    }
    for where, pixels in found.items():
        assert torch.equal(pixels, expected), where


def test_a_pipeline_takes_a_size(pretraining_folder):
    folder = pretraining_folder()
    RetFoundImageProcessor.for_image_size(64).save_pretrained(folder)
    extract = pipeline("image-feature-extraction", model=str(folder), return_tensors=True)
    seen: list[torch.Size] = []
    extract.model.register_forward_pre_hook(
        lambda module, args, options: seen.append(options["pixel_values"].shape), with_kwargs=True
    )
    extract(fundus())
    with contextlib.suppress(ValueError):  # the network has another size
        extract(fundus(), image_processor_kwargs={"size": {"height": 96, "width": 96}})
    assert [tuple(shape[2:]) for shape in seen] == [(64, 64), (96, 96)]


def test_stock_processors_read_the_size_of_the_input(tmp_path):
    """They cannot know the crop to the field of view and the margin; the card says so."""
    made = RetFoundImageProcessor.for_image_size(64, do_fundus_crop=False)
    made.save_pretrained(tmp_path)
    stock = ViTImageProcessor.from_pretrained(tmp_path)
    assert dict(stock.size) == square(64)
    whole = pixels_of(made, plain(), do_center_crop=False)
    np.testing.assert_allclose(pixels_of(stock, plain()).numpy(), whole.numpy(), atol=1e-6)


@pytest.mark.parametrize(
    ("field", "options"),
    [("size", {"size": 0}), ("size", {"size": "large"}), ("size", {"size": {"longest_edge": 224}}),
     ("crop_pct", {"crop_pct": -1.0}), ("crop_size", {"size": 96, "crop_pct": 0.9, "crop_size": 64})],
)  # fmt: skip
def test_sizes_that_are_none_or_contradict_each_other_are_refused(field, options, processor):
    for call in (lambda: RetFoundImageProcessor(**options), lambda: processor(plain(), **options)):
        with pytest.raises(BadArgumentError) as error:
            call()
        assert error.value.field == field


FLOATS = {
    "0-255": lambda pixels: pixels.astype(np.float32), "0-1": lambda pixels: pixels.astype(np.float64) / 255,
    "half": lambda pixels: torch.from_numpy(pixels).permute(2, 0, 1).half() / 255,
    "16 bits": lambda pixels: pixels.astype(np.float32) * 257,
    "RGBA": lambda pixels: np.dstack([pixels, np.full(pixels.shape[:2], 255)]).astype(np.float32) / 255,
}  # fmt: skip


@pytest.mark.parametrize("kind", FLOATS)
def test_floats_are_the_image_of_their_integers(kind, processor):
    pixels = np.array(fundus())
    pixels[0, 0] = 255
    assert torch.equal(pixels_of(processor, FLOATS[kind](pixels)), pixels_of(processor, pixels))


@pytest.mark.parametrize("options", [{"do_rescale": False}, {"rescale_factor": 1.0}])
def test_scaled_floats_are_cropped_too(options, processor):
    scaled = np.array(fundus()).astype(np.float32) / 255
    assert_shows(pixels_of(processor, scaled, **options), pixels_of(processor, fundus()), 1.0)


@pytest.mark.parametrize(("low", "high"), [(-2.1, 2.6), (-0.02, 1), (0, 1.5), (0.5, 258.5), (np.nan, np.nan)])
def test_floats_of_other_ranges_are_refused(low, high, processor):
    with pytest.raises(BadDataError):
        processor(np.linspace(low, high, 3 * 20 * 20, dtype=np.float32).reshape(3, 20, 20))


def test_standardised_values_pass_as_they_are(processor):
    values = pixels_of(processor, fundus())[0]
    options = {"do_rescale": False, "do_normalize": False}
    assert torch.equal(pixels_of(processor, values, do_resize=False, **options)[0], values)
    prepared = torch.rand(3, 224, 224, generator=torch.Generator().manual_seed(0))
    found = pixels_of(processor, prepared, do_rescale=False, do_resize=False)
    expected = (prepared.numpy() - MEAN[:, None, None]) / STD[:, None, None]
    np.testing.assert_allclose(found[0].numpy(), expected, atol=1e-5)


def test_strings_are_paths_addresses_or_base64(processor, forms):
    encoded = base64.encodebytes(forms["bytes"]).decode()
    expected = pixels_of(processor, forms["pil"])
    folder = forms["path"].parent
    handler = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *args: None})
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        strings = (str(forms["path"]), f"{address}/image.png", encoded, f"data:image/png;base64,{encoded}")
        for text in strings:
            assert torch.equal(pixels_of(processor, text), expected), text[:30]
        with pytest.raises(UnreadableImageError) as error:
            processor(f"{address}/absent.png")
        assert "404" in error.value.reason
        server.shutdown()


@pytest.mark.parametrize(
    "text", ["QUJD" * 1000, "x-" * 1000, "data:image/png;base64,QUJD", "data:," + "a" * 3000, "images/eye01",
             "http://127.0.0.1:1/" + "a" * 3000, "/" + "long name/" * 500],
)  # fmt: skip
def test_a_string_that_is_no_image_is_repeated_in_part(text, processor):
    with pytest.raises(UnreadableImageError) as error:
        processor(text)
    assert error.value.path == text and len(str(error.value)) < 400


@pytest.mark.parametrize("options", [{"backend": "pil"}, {"use_fast": False}])
def test_another_backend_is_not_ignored_in_silence(options, tmp_path, caplog):
    RetFoundImageProcessor.for_image_size(64).save_pretrained(tmp_path)
    RetFoundConfig().save_pretrained(tmp_path)
    for load in (AutoImageProcessor.from_pretrained, RetFoundImageProcessor.from_pretrained):
        caplog.clear()
        assert type(load(tmp_path, **options)) is RetFoundImageProcessor
        assert "pil" in caplog.text


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
    plain = {"do_rescale": False, "do_normalize": False}
    options = options or {"size": {"height": size, "width": size}}
    processor = RetFoundImageProcessor(**plain, **options)
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
