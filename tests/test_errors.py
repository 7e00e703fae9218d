"""Errors carry what programs need, and keep it on their way from another process."""

import pickle
from pathlib import Path

import pytest

from retfound_hf.errors import (
    BadArgumentError,
    BadDataError,
    BadModelError,
    DivergedError,
    HubAccessError,
    MissingPackageError,
    OutputError,
    RetFoundError,
    UnreadableImageError,
    join_names,
    nearest,
    require,
    require_range,
)

ERRORS = [
    RetFoundError("text", extra=1),
    BadArgumentError("text", field="level", value="eyes", accepted=["eye"]),
    BadDataError("text", rows=[1, 2], source="table.csv"),
    UnreadableImageError("text", path="a.png", reason="cut off"),
    BadModelError("text", model="folder"),
    DivergedError("text", step=3, ids=["a"]),
    HubAccessError("text", repo_id="a/b", status=403),
    OutputError("text", path="out"),
    MissingPackageError("pydicom", "dicom"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_attributes_survive_pickling(error):
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error) and str(again) == str(error) and again.__dict__ == error.__dict__
    assert isinstance(again, ValueError)


def test_attributes():
    assert (ERRORS[1].field, ERRORS[1].value, ERRORS[1].accepted) == ("level", "eyes", ("eye",))
    assert ERRORS[2].rows == (1, 2) and ERRORS[3].rows == ("a.png",) and ERRORS[7].path == Path("out")
    assert "retfound-hf[dicom]" in str(ERRORS[8])


def test_require():
    require("method", "lora", {"lora": 1})
    with pytest.raises(BadArgumentError) as error:
        require("method", "lorra", ("lora", "full"))
    assert (error.value.field, error.value.value, error.value.accepted) == ("method", "lorra", ("lora", "full"))
    assert "did you mean lora?" in str(error.value)


@pytest.mark.parametrize(("value", "fits"), [(0, True), (1, True), (1.1, False), (-0.1, False), (float("nan"), False)])
def test_require_range(value, fits):
    if fits:
        require_range("share", value, 0, 1)
    else:
        with pytest.raises(BadArgumentError) as error:
            require_range("share", value, 0, 1)
        assert error.value.field == "share"
    with pytest.raises(BadArgumentError):
        require_range("share", 0, 0, open_low=True)


def test_nearest_name():
    assert "finetune" in nearest("finetun", ["finetune", "embed"])
    assert nearest("xyz", ["finetune", "embed"]) == ""


def test_join_names():
    assert join_names("abc") == "a, b, c" and join_names(range(7), 2) == "0, 1 and 5 more"
