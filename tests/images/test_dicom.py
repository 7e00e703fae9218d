"""DICOM files made here: photometric interpretations, depth, windows, frames, compression; nothing of the patient."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.pixels import set_pixel_data
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, RLELossless, SecondaryCaptureImageStorage

from retfound_hf.errors import RetFoundError
from retfound_hf.images import dicom
from retfound_hf.images.reading import UnreadableImageError, find_images, read_image

SECRETS = ("Doe^Jane", "PID12345", "19600131")
RAMP = np.linspace(0, 255, 48 * 40).reshape(48, 40)


def made(
    values: np.ndarray, kind: str = "MONOCHROME2", bits: int = 8, syntax: str = "", **elements
) -> pydicom.Dataset:
    dataset = pydicom.Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = SecondaryCaptureImageStorage, pydicom.uid.generate_uid()
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = SECRETS
    set_pixel_data(dataset, values, kind, bits)
    for name, value in elements.items():
        setattr(dataset, name, value)
    if syntax:
        dataset.compress(syntax)
    return dataset


def encoded(dataset: pydicom.Dataset) -> bytes:
    file = BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def pixels(dataset: pydicom.Dataset) -> np.ndarray:
    return np.asarray(read_image(encoded(dataset)))


def test_eight_bit_gray_comes_as_it_is_and_monochrome1_inverted():
    values = RAMP.astype(np.uint8)
    assert np.array_equal(pixels(made(values)), np.repeat(values[..., None], 3, 2))
    assert np.array_equal(pixels(made(values, "MONOCHROME1"))[..., 0], 255 - values)


def test_colour_and_ybr():
    rgb = np.random.default_rng(0).integers(0, 256, (32, 24, 3), dtype=np.uint8)
    assert np.array_equal(pixels(made(rgb, "RGB")), rgb)
    ybr = pydicom.pixels.convert_color_space(rgb, "RGB", "YBR_FULL")
    assert np.abs(pixels(made(ybr, "YBR_FULL")).astype(int) - rgb).max() <= 2
    deep = rgb.astype(np.uint16) << 4
    assert np.array_equal(pixels(made(deep, "RGB", 12)), rgb)


def test_palette():
    index = np.array([[0, 1], [2, 1]], np.uint8)
    elements = {}
    for channel, values in (("Red", (0, 10, 200)), ("Green", (5, 20, 100)), ("Blue", (9, 30, 50))):
        elements[f"{channel}PaletteColorLookupTableDescriptor"] = [3, 0, 16]
        elements[f"{channel}PaletteColorLookupTableData"] = (np.array(values, np.uint16) << 8).tobytes()
    found = pixels(made(index, "PALETTE COLOR", **elements))
    assert found.tolist() == [[[0, 5, 9], [10, 20, 30]], [[200, 100, 50], [10, 20, 30]]]


def test_window_by_hand():
    """PS3.3 C.11.2.1.2: y = ((x - (c - 0.5)) / (w - 1) + 0.5), cut to 0..1."""
    values = np.array([[0, 899, 1000, 1100, 1101, 4000]], np.uint16)
    found = pixels(made(values, bits=12, WindowCenter=1000, WindowWidth=201))[0, :, 0]
    expected = np.rint(255 * np.clip((values[0] - 999.5) / 200 + 0.5, 0, 1))
    assert found.tolist() == expected.tolist() and found[0] == 0 and found[-1] == 255
    assert pixels(made(values, "MONOCHROME1", 12, WindowCenter=1000, WindowWidth=201))[0, :, 0].tolist() == [
        255 - value for value in expected
    ]
    # Rescaled first: the window is in rescaled units, and the values doubled and shifted give the same picture.
    scaled = {"RescaleSlope": 2, "RescaleIntercept": -100, "WindowCenter": 1899.5, "WindowWidth": 401}
    rescaled = pixels(made(values, bits=12, **scaled))[0, :, 0].astype(int)
    assert np.abs(rescaled - expected).max() <= 1


def test_sixteen_bits_without_a_window_follow_the_rule_for_deep_images():
    values = (RAMP * 16).astype(np.uint16)  # 12 of 16 bits used
    expected = np.asarray(read_image(Image.fromarray(values)))
    assert np.array_equal(pixels(made(values, bits=16)), expected)
    assert expected.max() == 254


def test_the_central_frame_is_read():
    volume = np.stack([np.full((20, 30), 10 * number, np.uint8) for number in range(7)])
    assert np.unique(pixels(made(volume))).tolist() == [30]
    assert np.unique(pixels(made(volume[:2]))).tolist() == [10]
    assert np.unique(pixels(made(volume[:1]))).tolist() == [0]


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_compressed_without_loss(syntax):
    values = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert np.array_equal(pixels(made(values, "RGB", syntax=syntax)), values)
    assert np.array_equal(pixels(made(values[..., 0], syntax=syntax))[..., 0], values[..., 0])


def test_compressed_by_jpeg():
    """Baseline JPEG, as cameras write it: YBR inside, RGB outside."""
    smooth = np.stack([RAMP, RAMP[::-1], np.full_like(RAMP, 90)], 2).astype(np.uint8)
    file = BytesIO()
    Image.fromarray(smooth).save(file, "JPEG", quality=95, subsampling=0)
    dataset = made(smooth, "RGB")
    dataset.PixelData = pydicom.encaps.encapsulate([file.getvalue()])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    dataset.PhotometricInterpretation = "YBR_FULL"
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.JPEGBaseline8Bit
    assert np.abs(pixels(dataset).astype(int) - smooth).max() <= 6


def test_nothing_of_the_patient_comes_along(tmp_path: Path):
    image = read_image(encoded(made(RAMP.astype(np.uint8))))
    assert image.info == {} and not image.getexif()
    image.save(tmp_path / "kept.png")
    image.save(tmp_path / "kept.jpg")
    for path in tmp_path.iterdir():
        assert not any(secret.encode() in path.read_bytes() for secret in SECRETS)


def test_found_by_name_and_known_by_content(tmp_path: Path):
    content = encoded(made(RAMP.astype(np.uint8)))
    for name in ("scan.dcm", "SCAN.DICOM", "named-wrongly.png"):
        (tmp_path / name).write_bytes(content)
        assert read_image(tmp_path / name).size == (40, 48)
    assert [path.name for path in find_images(tmp_path)] == ["SCAN.DICOM", "named-wrongly.png", "scan.dcm"]


def test_what_cannot_be_shown_is_said(tmp_path: Path):
    content = encoded(made(RAMP.astype(np.uint8)))
    with pytest.raises(UnreadableImageError, match=r"40 x 48 pixels, more than the 1,000 allowed"):
        read_image(content, max_pixels=1000)
    (tmp_path / "cut.dcm").write_bytes(content[:-500])
    with pytest.raises(UnreadableImageError, match=r"cut\.dcm: ") as caught:
        read_image(tmp_path / "cut.dcm")
    report = made(RAMP.astype(np.uint8))
    del report.PixelData, report.Rows, report.Columns
    with pytest.raises(UnreadableImageError, match="holds no image"):
        read_image(encoded(report))
    del (without := made(RAMP.astype(np.uint8))).PixelData
    with pytest.raises(UnreadableImageError) as caught:
        read_image(encoded(without))
    assert "\n" not in str(caught.value) and not any(secret in str(caught.value) for secret in SECRETS)


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    content = encoded(made(RAMP.astype(np.uint8)))
    monkeypatch.setitem(__import__("sys").modules, "pydicom", None)
    with pytest.raises(RetFoundError, match=r"pip install 'retfound-hf\[dicom\]'") as caught:
        read_image(content)
    assert not isinstance(caught.value, UnreadableImageError)
    assert dicom.is_dicom(content)
