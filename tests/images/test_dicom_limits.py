"""What a DICOM file may cost: nothing is unpacked beyond its header's size, and no frame but one is read."""

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

from retfound_hf.images.dicom import check_run_lengths, jpeg2000_size, jpeg_size
from retfound_hf.images.reading import UnreadableImageError, read_image, to_rgb

SMALL = np.arange(256, dtype=np.uint8).reshape(16, 16)


def made(values: np.ndarray, frames: list[bytes], syntax: str) -> pydicom.Dataset:
    """A header of `values` over frames that are encoded already."""
    dataset = pydicom.Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = uid.SecondaryCaptureImageStorage, uid.generate_uid()
    set_pixel_data(dataset, values, "MONOCHROME2", 8 * values.itemsize)
    if frames:
        dataset.PixelData = encapsulate(frames)
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = syntax
    return dataset


def encoded(dataset: pydicom.Dataset) -> bytes:
    file = BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


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
    content = encoded(made(np.zeros((4096, 4096), np.uint8), [], uid.DeflatedExplicitVRLittleEndian))
    assert len(content) < 100_000
    with pytest.raises(UnreadableImageError, match=r"deflated as a whole \(.*\); store it unpacked"):
        read_image(content)
    assert peak_of(lambda: read_image(content)) < 2**20


@pytest.mark.parametrize(("kind", "syntax"), [("JPEG", uid.JPEGBaseline8Bit), ("JPEG2000", uid.JPEG2000Lossless)])
def test_a_frame_larger_than_its_header_is_refused_before_it_is_decoded(kind, syntax, monkeypatch):
    assert np.abs(np.asarray(read_image(encoded(made(SMALL, [coded(kind, 16)], syntax))))[..., 0] - SMALL).mean() < 99
    content = encoded(made(SMALL, [coded(kind, 512)], syntax))
    monkeypatch.setattr("pydicom.pixels.pixel_array", lambda *_, **__: pytest.fail("decoded"))
    with pytest.raises(UnreadableImageError, match=r"has 512 x 512 pixels.* the header says 16 x 16"):
        read_image(content)


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
    with pytest.raises(UnreadableImageError, match="more than the 256 pixels"):
        check_run_lengths(bytes(bomb), 256)
    check_run_lengths(bytes(bomb), 128_000)
    content = encoded(made(SMALL, [bytes(bomb)], uid.RLELossless))
    with pytest.raises(UnreadableImageError, match="more than the 256 pixels that its header says"):
        read_image(content)


def test_no_frame_but_the_central_one_is_touched(tmp_path: Path):
    frames = [b"no JPEG"] * 9
    frames[4] = coded("JPEG", 16)
    values = np.zeros((9, 16, 16), np.uint8)
    assert np.asarray(read_image(encoded(made(values, frames, uid.JPEGBaseline8Bit)))).std() > 9
    volume = np.zeros((64, 256, 256), np.uint8)
    volume[32] = 7
    (tmp_path / "native.dcm").write_bytes(encoded(made(volume, [], uid.ExplicitVRLittleEndian)))
    assert np.unique(np.asarray(read_image(tmp_path / "native.dcm"))).tolist() == [7]
    assert peak_of(lambda: read_image(tmp_path / "native.dcm")) < volume.nbytes / 4


def test_deep_images_are_what_they_were_without_their_weight_in_doubles():
    rng = np.random.default_rng(0)
    for values in (
        rng.integers(0, 5000, (1500, 1000), dtype=np.uint16),
        rng.integers(-9, 2**24, (1500, 1000), dtype=np.int32),
        rng.normal(0.4, 0.3, (1500, 1000)).astype(np.float32),
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
    dataset = made(values, [], uid.ExplicitVRLittleEndian)
    dataset.WindowCenter, dataset.WindowWidth = 1000, 201
    expected = np.rint(255 * np.clip((values - 999.5) / 200 + 0.5, 0, 1))
    found = np.asarray(read_image(encoded(dataset)))[..., 0]
    assert np.abs(found - expected).max() <= 1 and np.mean(found == expected) > 0.999
