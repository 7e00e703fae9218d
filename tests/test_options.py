import json
import logging
from dataclasses import dataclass, field
from typing import Literal

import pytest
import yaml

from retfound_hf.errors import BadArgumentError, BadDataError, MissingPackageError, RetFoundError
from retfound_hf.options import (
    build_arguments,
    check_ranges,
    check_trackers,
    option,
    parse_arguments,
    read_yaml,
    run_command,
    with_flags,
)


@dataclass
class Data:
    source: str = field(metadata={"positional": True, "help": "what to read"})
    out: str = field(metadata={"positional": True, "help": "what to write"})
    image_size: int = field(default=224, metadata={"help": "pixels"})
    label_columns: list[str] | None = field(default=None, metadata={"help": "columns"})
    modality: Literal["cfp", "oct"] = field(default="cfp", metadata={"help": "kind of image"})


@dataclass
class Training:
    learning_rate: float = field(default=1e-3, metadata={"help": "peak"})
    mixup: bool = field(default=False, metadata={"help": "mix images"})
    augment: bool = field(default=True, metadata={"help": "augment images"})
    split: str | None = field(default=None, metadata={"help": "a split"})

    def __post_init__(self):
        if self.learning_rate <= 0:
            raise RetFoundError(f"learning_rate={self.learning_rate} must be above 0")


def parse(*words: str) -> tuple[Data, Training]:
    return parse_arguments(Data, Training, argv=words)


def test_flags():
    data, training = parse("in", "out", "--image_size", "96", "--learning_rate", "5e-4", "--modality", "oct")
    assert data == Data("in", "out", image_size=96, modality="oct")
    assert training == Training(learning_rate=5e-4)


def test_positional_words_may_follow_flags():
    assert parse("--image_size", "96", "in", "out")[0] == Data("in", "out", image_size=96)


@pytest.mark.parametrize(
    ("words", "mixup"), [((), False), (("--mixup",), True), (("--mixup", "true"), True), (("--mixup", "False"), False)]
)
def test_booleans(words, mixup):
    assert parse("in", "out", *words)[1].mixup is mixup


def test_booleans_that_are_on_can_be_turned_off():
    assert parse("in", "out", "--augment", "false")[1].augment is False
    assert parse("in", "out", "--no_augment")[1].augment is False


def test_lists():
    assert parse("in", "out", "--label_columns", "dr", "dme")[0].label_columns == ["dr", "dme"]


@pytest.fixture(params=["yaml", "yml", "json"])
def options_file(request, tmp_path):
    def write(options) -> str:
        path = tmp_path / f"options.{request.param}"
        path.write_text(json.dumps(options) if request.param == "json" else yaml.safe_dump(options))
        return str(path)

    return write


def test_file_in_place_of_flags(options_file):
    path = options_file(
        {
            "out": "there", "source": "here", "image_size": 96, "label_columns": ["dr", "dme"],
            "learning_rate": 0.0005, "mixup": True, "augment": False, "split": None,
        }
    )  # fmt: skip
    data, training = parse(path)
    assert data == Data("here", "there", image_size=96, label_columns=["dr", "dme"])
    assert training == Training(learning_rate=5e-4, mixup=True, augment=False)


def test_flags_after_a_file_override_it(options_file):
    path = options_file({"source": "here", "out": "there", "image_size": 96, "mixup": True, "label_columns": ["a"]})
    data, training = parse(path, "--image_size", "64", "--mixup", "false", "--label_columns", "b", "c")
    assert (data.image_size, training.mixup, data.label_columns) == (64, False, ["b", "c"])
    assert (data.source, data.out) == ("here", "there")


def test_file_gives_the_positional_words_that_the_command_line_does_not(options_file):
    assert parse(options_file({"source": "here", "image_size": 96}), "there")[0] == Data("here", "there", 96)


def test_a_small_number_in_yaml_is_a_number(tmp_path):
    """YAML 1.1 reads 5e-4 as text, for want of a point."""
    path = tmp_path / "options.yaml"
    path.write_text("source: a\nout: b\nlearning_rate: 5e-4\n")
    assert parse(str(path))[1].learning_rate == 5e-4


def test_unknown_option_in_a_file_names_the_nearest(options_file):
    with pytest.raises(BadArgumentError) as error:
        parse(options_file({"source": "a", "out": "b", "image_sise": 96}))
    assert error.value.field == "image_sise" and "--image_size" in str(error.value)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--imagesize", "96"], ["--imagesize", "--image_size"]),
        (["--learning-rte=3"], ["--learning-rte", "--learning"]),
        (["--image", "96"], ["--image"]),
        (["--zzz", "1"], ["--zzz", "--help"]),
        (["--image_size", "big"], ["--image_size", "'big'"]),
        (["--modality", "mri"], ["'mri'"]),
        (["--image_size"], ["--image_size"]),
        (["--label_columns"], ["--label_columns"]),
        (["--learning_rate", "-1"], ["learning_rate", "-1.0"]),
        (["--mixup", "perhaps"], ["perhaps"]),
        (["third"], ["third"]),
    ],
)
def test_bad_options_are_one_line(words, named):
    with pytest.raises(RetFoundError) as error:
        parse("in", "out", *words)
    text = str(error.value)
    assert "\n" not in text and "usage" not in text and all(word in text for word in named)


def test_missing_positional_word_is_named():
    with pytest.raises(RetFoundError) as error:
        parse("in")
    assert "OUT" in str(error.value)


@pytest.mark.parametrize(
    ("name", "text", "named"),
    [
        ("absent.yaml", None, "absent.yaml"),
        ("a.json", "{", "a.json"),
        ("a.yaml", "a: [", "a.yaml"),
        ("a.yaml", "- a\n- b\n", "list"),
        ("a.json", '{"image_size": "big", "source": "a", "out": "b"}', "'big'"),
    ],
)
def test_bad_files(tmp_path, name, text, named):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(RetFoundError) as error:
        parse(str(tmp_path / name))
    assert named in str(error.value)


def test_help_lists_every_option_with_its_default(capsys):
    with pytest.raises(SystemExit) as done:
        parse("--help")
    assert done.value.code == 0
    said = capsys.readouterr().out
    for word in ("SOURCE", "OUT", "--image_size", "default: 224", "--label_columns", "--mixup", "what to read"):
        assert word in said
    assert "None" not in said and "turn --augment off" in said


def test_help_says_what_is_required(capsys):
    @dataclass
    class Needed:
        model: str = field(metadata={"help": "which one"})

    with pytest.raises(SystemExit):
        parse_arguments(Needed, argv=["--help"])
    assert "which one (required)" in capsys.readouterr().out


class TestRunCommand:
    def test_success(self):
        given = []
        assert run_command(given.append, ["a"]) == 0
        assert given == [["a"]]

    def test_bad_input(self, capsys):
        def fail(_):
            raise RetFoundError("image_size=3\nmust be\n  at least 16")

        assert run_command(fail, []) == 2
        said = capsys.readouterr()
        assert said.err == "error: image_size=3 must be at least 16\n" and said.out == ""

    def test_interrupt(self, capsys):
        def stop(_):
            raise KeyboardInterrupt

        assert run_command(stop, []) == 130
        assert capsys.readouterr().err == "stopped: interrupted\n"

    def test_a_bug_keeps_its_traceback(self):
        with pytest.raises(ZeroDivisionError):
            run_command(lambda _: 1 / 0, [])


class TestFlags:
    def test_backticked_fields_become_flags(self):
        message = "`level='eye'` needs `patient_id`; pass `label_conflicts=max` or leave out `level`"
        expected = "--level eye needs `patient_id`; pass --label_conflicts max or leave out --level"
        assert with_flags(message, {"level": "--level", "label_conflicts": "--label_conflicts"}) == expected

    def test_command_prints_flags_of_its_own_fields(self, capsys):
        def command(argv):
            parse("in", "out")
            raise BadArgumentError("`image_size=3` must be at least 16", field="image_size", value=3)

        assert run_command(command, []) == 2
        assert capsys.readouterr().err.startswith("error: --image_size 3 must")

    def test_a_field_with_a_place_of_its_own_is_no_flag(self, capsys):
        def command(argv):
            parse("in", "out")
            raise BadArgumentError("`source=in` holds no image", field="source", value="in")

        assert run_command(command, []) == 2
        assert capsys.readouterr().err.startswith("error: SOURCE in holds")


class TestBuildArguments:
    def test_fields_go_to_their_types(self):
        data, training = build_arguments((Data, Training), {"source": "a", "out": "b", "mixup": True})
        assert (data.source, training.mixup) == ("a", True)

    def test_unknown_option_is_a_type_error(self):
        with pytest.raises(TypeError, match="image_size"):
            build_arguments((Data, Training), {"source": "a", "out": "b", "image_sise": 3})


@dataclass
class Ranged:
    rate: float | None = option(None, "rate", above=0)
    share: float = option(0.5, "share", 0, below=1)
    workers: int = option(lambda: 2, "workers", 0, 8)

    def __post_init__(self):
        check_ranges(self)


@pytest.mark.parametrize("wrong", [{"rate": 0}, {"share": 1}, {"share": -0.1}, {"workers": 9}, {"rate": float("nan")}])
def test_numbers_outside_their_range_name_their_field(wrong):
    with pytest.raises(BadArgumentError) as error:
        Ranged(**wrong)
    assert {error.value.field: error.value.value} == pytest.approx(wrong, nan_ok=True)
    flags = [word for name, value in wrong.items() for word in (f"--{name}", str(value))]
    with pytest.raises(BadArgumentError):
        parse_arguments(Ranged, argv=flags)


def test_notes_name_options_as_the_command_writes_them(capsys):
    def command(argv):
        parse_arguments(Ranged, argv=argv)
        logging.getLogger("retfound_hf.data").info("%s: `share` sets it, `share=%s` here, `other` not", "x", 1)

    assert run_command(command, []) == 0
    assert capsys.readouterr().err == "x: --share sets it, --share 1 here, `other` not\n"


def test_ranges_leave_unset_and_fitting_numbers_alone():
    assert parse_arguments(Ranged, argv=["--share", "0"]) == (Ranged(share=0.0),)
    assert (Ranged().rate, Ranged().workers) == (None, 2)


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        (None, []), ("none", []), ([], []), (["none", "none"], []), ("trackio", ["trackio"]),
        (["all", "none"], ["all"]),
        (["wandb", "none", "trackio", "wandb"], ["wandb", "trackio"]),
    ],
)  # fmt: skip
def test_trackers_that_are_there(asked, found):
    assert check_trackers(asked, ["wandb", "trackio", "comet_ml"], ["wandb", "trackio"]) == found


@pytest.mark.parametrize("name", ["wanbd", "TensorBoard", "trackio,wandb", ""])
def test_an_unknown_tracker_is_named_with_those_that_are_known(name):
    with pytest.raises(BadArgumentError) as error:
        check_trackers(["trackio", name], ["comet_ml"], ["trackio"])
    assert (error.value.field, error.value.value) == ("report_to", name)
    assert {"none", "tensorboard", "trackio", "wandb", "comet_ml"} <= set(error.value.accepted)


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [("trackio", "trackio", "trackio"), ("no_such", "no_such", ""), ("azure_ml", "azureml-core", "")],
)
def test_a_tracker_without_its_package_comes_with_the_command_that_brings_it(name, package, extra, monkeypatch):
    monkeypatch.setattr("retfound_hf.options._is_there", lambda package: False)
    with pytest.raises(MissingPackageError) as error:
        check_trackers(name, ["no_such", "azure_ml"], ["wandb"])
    assert (error.value.package, error.value.extra) == (package, extra)
    assert str(error.value).endswith("pip install 'retfound-hf[trackio]'" if extra else f"pip install {package}")


LAUGHS = "a: &a [1, 2, 3, 4, 5, 6, 7, 8]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 8)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "content",
    [LAUGHS, LAUGHS + "? *i\n: 1\n", "a: &a [*a]\n", "&a [*a]\n", "a: !!python/object/apply:os.system [exit]\n",
     "a: 1\na: 2\n", "a: 0x" + "f" * 10**5, "a: " + ":".join(["59"] * 10**4), "a: " + "[" * 10**5,
     "a: " + "b" * 10**6, "a: 2001-99-99", "a: \0"],
    ids=["laughs", "key", "loop", "itself", "tag", "twice", "sixteens", "minutes", "deep", "long", "date", "zero"],
)  # fmt: skip
def test_yaml_that_asks_for_much_or_says_two_things_is_refused(content, tmp_path):
    (tmp_path / "options.yaml").write_text(content)
    with pytest.raises(BadDataError) as error:
        read_yaml(tmp_path / "options.yaml")
    assert error.value.source == str(tmp_path / "options.yaml") and len(str(error.value)) < 1000


def test_yaml_with_aliases_and_merged_mappings(tmp_path):
    (tmp_path / "options.yaml").write_text(
        "base: &base {x: 1, y: [1, 2]}\nown: {<<: *base, x: 2}\nall: [*base, *base]\n"
    )
    base = {"x": 1, "y": [1, 2]}
    assert read_yaml(tmp_path / "options.yaml") == {"base": base, "own": {**base, "x": 2}, "all": [base, base]}
    (tmp_path / "options.yaml").write_text("")
    assert read_yaml(tmp_path / "options.yaml") is None
