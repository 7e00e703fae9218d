"""DICOM files made here: interpretations, depth, windows, frames, compression; nothing of the patient; limits."""

import os
import tracemalloc
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom import uid
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import set_pixel_data
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, RLELossless, SecondaryCaptureImageStorage

from retfound_hf.errors import MissingPackageError, UnreadableImageError
from retfound_hf.images import dicom
from retfound_hf.images.dicom import check_run_lengths, jpeg2000_size, jpeg_size
from retfound_hf.images.reading import find_images, is_dicom, read_image, to_rgb

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


@pytest.mark.parametrize("syntax", [uid.ImplicitVRLittleEndian, ExplicitVRLittleEndian, uid.ExplicitVRBigEndian])
@pytest.mark.parametrize("with_meta", [True, False])
def test_files_of_older_devices_lack_the_preamble(syntax, with_meta, tmp_path):
    values = RAMP.astype(np.uint16) * 16
    dataset, file = made(values, bits=12), BytesIO()
    dataset.file_meta.TransferSyntaxUID = syntax
    order = {"little_endian": syntax.is_little_endian, "implicit_vr": syntax.is_implicit_VR}
    pydicom.dcmwrite(file, dataset, enforce_file_format=True, **({} if order["little_endian"] else order))
    expected, whole = np.asarray(read_image(file.getvalue())), file.getvalue()
    first = b"\x08\0\x16\0" if syntax.is_little_endian else b"\0\x08\0\x16"
    bare = whole[132:] if with_meta else whole[whole.index(first) :]
    (tmp_path / "IM000001").write_bytes(bare)
    assert is_dicom(bare) and is_dicom(tmp_path / "IM000001")
    for source in (bare, tmp_path / "IM000001"):
        assert np.array_equal(read_image(source), expected)


def test_dicom_is_found_by_its_content(tmp_path):
    content = encoded(made(RAMP.astype(np.uint8)))
    names = ["IM000001", "1.2.840.113619.2", "scan.ima", "sub/IMG.bin", "DICOMDIR", "notes.txt", "a.jpg"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "README").write_text("no image")
    os.mkfifo(tmp_path / "pipe")
    found = [path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path)]
    assert found == ["1.2.840.113619.2", "IM000001", "a.jpg", "scan.ima", "sub/IMG.bin"]
    others = [b"", b"\x08", b"\x08\0\0", b"\x08\0\x16\0\xff\xff\xff\xff", b"\x02\0\0\0\xff\xd8\xff\xe0", b"%PDF-1.4"]
    assert not any(map(is_dicom, others))


@pytest.mark.parametrize("kind", ["MONOCHROME2", "MONOCHROME1"])
@pytest.mark.parametrize(("bits", "window"), [(16, {}), (12, {"WindowCenter": -200, "WindowWidth": 40}),
                                              (8, {"WindowCenter": 2048, "WindowWidth": 4096}),
                                              (8, {"WindowCenter": 9000, "WindowWidth": 100})])  # fmt: skip
def test_depths_and_windows_of_other_devices_do_not_blacken(kind, bits, window):
    values = RAMP.astype(np.uint8) if bits == 8 else RAMP.astype(np.uint16) * 16
    expected = RAMP.astype(np.uint8) if kind == "MONOCHROME2" else 255 - RAMP.astype(np.uint8)
    found = pixels(made(values, kind, bits, **window))[..., 0].astype(int)
    assert np.abs(found - expected).max() <= 1
    whitened = made(RAMP.astype(np.uint16) * 16, bits=12, WindowCenter=20, WindowWidth=40)
    assert np.abs(pixels(whitened)[..., 0] - RAMP).max() <= 2


@pytest.mark.parametrize(("times", "bits"), [(16, 16), (16, 12), (257, 16), (1, 16)])
def test_colours_of_any_depth(times, bits):
    rgb = np.random.default_rng(0).integers(0, 256, (32, 24, 3), dtype=np.uint16)
    assert np.abs(pixels(made(rgb * times, "RGB", bits)).astype(int) - rgb).max() <= 1


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


def refused(source, reason: str = "", **options) -> None:
    """The image cannot be read for `reason`, said in one line without a word of the patient."""
    with pytest.raises(UnreadableImageError) as error:
        read_image(source, **options)
    assert reason in error.value.reason
    assert "\n" not in str(error.value) and not any(secret in str(error.value) for secret in SECRETS)


def test_files_without_an_image_that_can_be_shown(tmp_path: Path):
    content = encoded(made(RAMP.astype(np.uint8)))
    refused(content, "40 x 48 pixels", max_pixels=1000)
    (tmp_path / "cut.dcm").write_bytes(content[:-500])
    refused(tmp_path / "cut.dcm")
    report, without = made(RAMP.astype(np.uint8)), made(RAMP.astype(np.uint8))
    del report.PixelData, report.Rows, report.Columns, without.PixelData
    refused(encoded(report), "no image")
    refused(encoded(without))


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    content = encoded(made(RAMP.astype(np.uint8)))
    monkeypatch.setitem(__import__("sys").modules, "pydicom", None)
    with pytest.raises(MissingPackageError) as error:
        read_image(content)
    assert (error.value.package, error.value.extra) == ("pydicom", "dicom")
    assert is_dicom(content)


# Limits: nothing is unpacked beyond its header's size, and no frame but one is read.

SMALL = np.arange(256, dtype=np.uint8).reshape(16, 16)


def framed(values: np.ndarray, frames: list[bytes], syntax: str) -> pydicom.Dataset:
    """A header of `values` over frames that are encoded already."""
    dataset = made(values, bits=8 * values.itemsize)
    if frames:
        dataset.PixelData = encapsulate(frames)
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = syntax
    return dataset


def coded(kind: str, size: int) -> bytes:
    file = BytesIO()
    options = {"no_jp2": True} if kind == "JPEG2000" else {}
    Image.fromarray(np.resize(SMALL, (size, size))).save(file, kind, **options)
    return file.getvalue()


def peak_of(read) -> int:
    tracemalloc.start()
    try:
        read()
    except UnreadableImageError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak


def test_a_deflated_file_is_refused_before_it_is_inflated():
    content = encoded(framed(np.zeros((4096, 4096), np.uint8), [], uid.DeflatedExplicitVRLittleEndian))
    assert len(content) < 100_000
    refused(content, "deflated")
    assert peak_of(lambda: read_image(content)) < 2**20


@pytest.mark.parametrize(("kind", "syntax"), [("JPEG", uid.JPEGBaseline8Bit), ("JPEG2000", uid.JPEG2000Lossless)])
def test_a_frame_larger_than_its_header_is_refused_before_it_is_decoded(kind, syntax, monkeypatch):
    small = read_image(encoded(framed(SMALL, [coded(kind, 16)], syntax)))
    assert np.abs(np.asarray(small)[..., 0] - SMALL).mean() < 99
    content = encoded(framed(SMALL, [coded(kind, 512)], syntax))
    monkeypatch.setattr("pydicom.pixels.pixel_array", lambda *_, **__: pytest.fail("decoded"))
    refused(content, "512 x 512 pixels")


def test_the_size_in_every_kind_of_codestream():
    frame = bytes.fromhex("0011 08 0010 0020 01 01 11 00")
    for kind in (0xC0, 0xC1, 0xC3, 0xDE, 0xF7):  # baseline, extended, lossless, hierarchical, JPEG-LS
        start = b"\xff\xd8\xff\xe0\x00\x06\xff\xc0ab\xff\xff\xfe\x00\x02\xff"
        assert jpeg_size(start + bytes([kind]) + frame) == (32, 16, 1)
    for broken in (b"", b"\xff\xd8", b"\xff\xd8\xff\xda\x00\x02", b"\xff\xd8junk\xff\xc0" + frame):
        with pytest.raises(UnreadableImageError):
            jpeg_size(broken)
    bare = coded("JPEG2000", 32)
    boxes = b"\x00\x00\x00\x0cjP  \r\n\x87\n\x00\x00\x00\x10free" + bare[:8] + b"\x00\x00\x00\x00jp2c"
    assert jpeg2000_size(bare) == jpeg2000_size(boxes + bare) == (32, 32, 1)
    for broken in (b"", bare[:20], boxes, boxes[:12] + bytes(8)):
        with pytest.raises(UnreadableImageError):
            jpeg2000_size(broken)


def test_run_lengths_that_unpack_to_more_are_refused():
    bomb = bytearray(64) + b"\x81\x00" * 1000  # 128 zeros each time
    bomb[0], bomb[4] = 1, 64
    with pytest.raises(UnreadableImageError):
        check_run_lengths(bytes(bomb), 256)
    check_run_lengths(bytes(bomb), 128_000)
    content = encoded(framed(SMALL, [bytes(bomb)], uid.RLELossless))
    refused(content, "256 pixels")


def test_no_frame_but_the_central_one_is_touched(tmp_path: Path):
    frames = [b"no JPEG"] * 9
    frames[4] = coded("JPEG", 16)
    values = np.zeros((9, 16, 16), np.uint8)
    assert np.asarray(read_image(encoded(framed(values, frames, uid.JPEGBaseline8Bit)))).std() > 9
    volume = np.zeros((64, 256, 256), np.uint8)
    volume[32] = 7
    (tmp_path / "native.dcm").write_bytes(encoded(framed(volume, [], uid.ExplicitVRLittleEndian)))
    assert np.unique(np.asarray(read_image(tmp_path / "native.dcm"))).tolist() == [7]
    assert peak_of(lambda: read_image(tmp_path / "native.dcm")) < volume.nbytes / 4


def test_deep_images_are_what_they_were_without_their_weight_in_doubles():
    rng = np.random.default_rng(0)
    for values in (
        rng.integers(0, 5000, (1500, 1000), dtype=np.uint16),
        rng.integers(-9, 2**24, (1500, 1000), dtype=np.int32),
        rng.normal(0.4, 0.1, (1500, 1000)).astype(np.float32),
    ):
        values.flat[:3] = 0
        white = next((limit for limit in (1, 255, 1023, 4095, 16383, 65535) if values.max() <= limit), values.max())
        white = 255 if white == 1 and values.dtype.kind != "f" else white
        expected = np.rint(values.astype(np.float64).clip(min=0) * (255 / float(white))).astype(np.uint8)
        assert np.array_equal(np.asarray(to_rgb(Image.fromarray(values)))[..., 1], expected)
    deep = Image.fromarray(rng.integers(0, 65536, (4000, 4000), dtype=np.uint16))
    assert peak_of(lambda: to_rgb(deep)) < 8 * deep.width * deep.height  # one array of doubles


def test_a_window_treats_a_large_image_as_its_strips():
    values = np.random.default_rng(1).integers(0, 4096, (1100, 1000), dtype=np.uint16)
    dataset = framed(values, [], uid.ExplicitVRLittleEndian)
    dataset.WindowCenter, dataset.WindowWidth = 1000, 201
    expected = np.rint(255 * np.clip((values - 999.5) / 200 + 0.5, 0, 1))
    found = np.asarray(read_image(encoded(dataset)))[..., 0]
    assert np.abs(found - expected).max() <= 1 and np.mean(found == expected) > 0.999


def test_headers_of_many_elements_and_deep_sequences_are_refused(monkeypatch):
    dataset = made(RAMP.astype(np.uint8))
    dataset.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian
    file = BytesIO()
    pydicom.dcmwrite(file, dataset, enforce_file_format=True, implicit_vr=True, little_endian=True)
    content = file.getvalue()
    place = content.index(b"\xe0\x7f\x10\x00")
    flood = b"".join(b"\x29\x00" + number.to_bytes(2, "little") + bytes(4) for number in range(0x1000, 0x1400))
    item = b"\x40\x00\x30\xa7\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    assert read_image(content[:place] + flood + content[place:]).size == (40, 48)
    monkeypatch.setattr(dicom, "MAX_READS", 1000)
    assert read_image(content).size == (40, 48)
    for inserted in (flood, item * 5000, item + flood):
        with pytest.raises(UnreadableImageError):
            read_image(content[:place] + inserted + content[place:])
