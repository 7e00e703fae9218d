import numpy as np
import pytest
import torch
from PIL import Image

from retfound_hf.errors import BadArgumentError, BadDataError
from retfound_hf.images.drawing import contact_sheet


def random_picture(seed: int, height: int = 40, width: int = 40) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_every_picture_lies_whole_in_its_cell():
    rows = [[random_picture(3 * i + j) for j in range(3)] for i in range(2)]
    sheet = np.asarray(contact_sheet(rows, margin=4))
    assert sheet.shape == (2 * 40 + 3 * 4, 3 * 40 + 4 * 4, 3)
    uncovered = np.ones(sheet.shape[:2], bool)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            cell = np.s_[4 + 44 * i : 44 + 44 * i, 4 + 44 * j : 44 + 44 * j]
            assert np.array_equal(sheet[cell], np.asarray(picture))
            uncovered[cell] = False
    assert (sheet[uncovered] == 255).all()


def test_tensors_and_pictures_make_the_same_sheet():
    picture = random_picture(0, 32, 32)
    bytes_ = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    expected = contact_sheet([[picture]]).tobytes()
    assert contact_sheet([[bytes_]]).tobytes() == expected
    assert contact_sheet([[bytes_ / 255]]).tobytes() == expected
    assert contact_sheet([[(bytes_ / 255).double().requires_grad_()]]).tobytes() == expected


def test_gray_undefined_and_overshooting_values():
    values = torch.tensor([[0.5, -3.0], [7.0, float("nan")]])
    for tensor in (values, values[None]):
        sheet = np.asarray(contact_sheet([[tensor]], margin=0))
        assert sheet.tolist() == [[[128] * 3, [0] * 3], [[255] * 3, [0] * 3]]


def test_titles_are_centred_over_their_columns_and_leave_the_pictures_alone():
    black = Image.new("RGB", (112, 112))
    rows = [[black] * 3] * 2
    bare, titled = (np.asarray(contact_sheet(rows, titles)) for titles in (None, ["original", "masked", "painted"]))
    header = len(titled) - len(bare)
    assert 8 <= header < 112 / 4
    assert np.array_equal(titled[header:], bare)
    for column in range(3):
        left = 4 + column * 116
        ink = np.flatnonzero((titled[:header, left : left + 112] < 128).any(axis=(0, 2)))
        assert len(ink) > 10
        assert (ink[0] + ink[-1]) / 2 == pytest.approx(55.5, abs=2)


@pytest.mark.parametrize("tile", [24, 64, 224])
def test_a_long_title_stays_within_its_column(tile):
    black = Image.new("RGB", (tile, tile))
    sheet = np.asarray(contact_sheet([[black, black]], ["an astonishingly long title " * 3, ""], margin=8))
    ink = np.flatnonzero((sheet[: len(sheet) - tile - 8] < 128).any(axis=(0, 2)))
    assert len(ink) and ink[0] >= 7 and ink[-1] <= 8 + tile


def test_pictures_of_other_sizes_are_fitted_with_their_shape_kept():
    wide, small = Image.new("RGB", (100, 50)), Image.new("RGB", (10, 10))
    sheet = np.asarray(contact_sheet([[wide, small]], tile=60, margin=5))
    dark = (sheet == 0).all(axis=2)
    assert sheet.shape == (70, 135, 3)
    assert dark[:, :65].sum() == 60 * 30 and dark[20:50, 5:65].all()
    assert dark[5:65, 70:130].all() and dark[:, 65:].sum() == 60 * 60


PICTURE = Image.new("RGB", (8, 8))


@pytest.mark.parametrize(
    "arguments",
    [([],), ([[]],), ([[PICTURE, PICTURE], [PICTURE]],), ([[PICTURE]], ["a", "b"]), ([[torch.zeros(4, 8, 8)]],),
     ([[torch.zeros(1, 3, 8, 8)]],)],
)  # fmt: skip
def test_bad_sheets_are_refused(arguments):
    with pytest.raises(BadDataError):
        contact_sheet(*arguments)
    with pytest.raises(BadArgumentError) as error:
        contact_sheet([[PICTURE]], tile=0)
    assert error.value.field == "tile"
