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
    one_line,
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


def test_names_with_control_characters_are_one_line_that_no_terminal_obeys():
    name = "a\nb\x1b[31m\u202e\u2028\ud800é"
    error = BadDataError(f"{name} has no rows", rows=[name])
    assert str(error) == "a b\\x1b[31m\\u202e \\ud800é has no rows" and error.rows == (name,)


LONG = {"word": "x" * 5000, "phrase": "ab cd " * 900}


@pytest.mark.parametrize("kind", LONG)
def test_messages_repeat_no_more_than_the_ends_of_what_was_given(kind):
    value = LONG[kind]
    errors = [
        BadModelError(f"model {value} has no config.json", model=value),
        BadDataError(f"table {value} has no rows {join_names([value, 'b'])}", rows=[value], source=value),
        UnreadableImageError(f"cannot read {value}: cut", path=value, reason="cut"),
        RetFoundError(f"argument --level: invalid choice: '{value}' (choose from 'eye', 'patient')"),
        RetFoundError(one_line(ValueError(f"Got '{value}'."))),
    ]
    with pytest.raises(BadArgumentError) as refused:
        require("level", value, ("eye", "patient"))
    for error in [*errors, refused.value]:
        assert len(str(error)) < 600 and str(error).count(value[:6]) < 80
    assert errors[0].model == errors[2].path == refused.value.value == value
    assert str(pickle.loads(pickle.dumps(errors[0]))) == str(errors[0])


def test_other_messages_stay_as_they_are():
    message = "the model's folder is the one that pretraining's checkpoint, the user's own, lies in; " * 5
    assert str(RetFoundError(message)) == message
