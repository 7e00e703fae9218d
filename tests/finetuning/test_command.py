"""The command: bad input is one line and leaves nothing behind; an options file does what flags do."""

import json
import shutil

import pytest
import yaml

from retfound_hf.finetuning.finetune import main
from retfound_hf.options import run_command

QUICK = ["--use_cpu", "--dataloader_num_workers", "0", "--disable_tqdm", "true", "--num_train_epochs", "1"]


@pytest.fixture
def refused(encoder_folder, planted, cache_dir, tmp_path, capsys):
    """Runs the command with options changed (None: left out) and gives its one line of error."""

    def run(**changes) -> str:
        options = {
            "model_name_or_path": encoder_folder, "data": planted, "output_dir": tmp_path / "refused",
            "cache_dir": cache_dir, **changes,
        }  # fmt: skip
        words = list(QUICK)
        for name, value in options.items():
            if value is not None:
                words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
        capsys.readouterr()
        assert run_command(main, words) == 2
        captured = capsys.readouterr()
        errors = [line for line in captured.err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, captured.err
        assert captured.err.rstrip().splitlines()[-1] == errors[0]
        assert "Traceback" not in captured.err
        if "output_dir" not in changes:
            assert not (tmp_path / "refused").exists()
        return errors[0].removeprefix("error: ")

    return run


def test_models_that_are_not_there(refused, tmp_path, planted):
    assert "neither a model folder here nor one that the Hub" in refused(model_name_or_path=tmp_path / "absent")
    assert "has no config.json" in refused(model_name_or_path=planted)
    assert "--config_name retfound-huge" in refused(model_name_or_path=None, config_name="retfound-huge")
    both = "pass exactly one of --model_name_or_path and --config_name"
    assert both in refused(config_name="retfound-tiny")
    assert both in refused(model_name_or_path=None)
    assert "--model_name_or_path" in refused(model_name_or_path=None, config_name="retfound-tiny", method="lora")


def test_data_that_cannot_be_used(refused, tmp_path, planted):
    assert "does not exist" in refused(data=tmp_path / "absent")
    incomplete = tmp_path / "incomplete"
    shutil.copytree(planted, incomplete)
    shutil.rmtree(incomplete / "val")
    assert "has no val split" in refused(data=incomplete)
    emptied = tmp_path / "emptied"
    shutil.copytree(planted, emptied)
    for path in (emptied / "train" / "amd").iterdir():
        path.unlink()
    assert "train/amd holds no image" in refused(data=emptied)


def test_a_patient_in_two_splits(refused, planted, tmp_path):
    import pandas as pd

    leaky = tmp_path / "leaky"
    shutil.copytree(planted, leaky)
    metadata = pd.read_csv(leaky / "metadata.csv")
    metadata.loc[metadata["image"].str.startswith("test/"), "patient_id"] = "p000"
    metadata.to_csv(leaky / "metadata.csv", index=False)
    assert "1 patient(s) are in more than one split (p000 in train and test)" in refused(data=leaky)


def test_corrupt_images_are_named_or_skipped(refused, run, planted, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(planted, damaged)
    victims = [sorted((damaged / split / "amd").iterdir())[0] for split in ("train", "test")]
    for path in victims:
        path.write_bytes(path.read_bytes()[:60])
    message = refused(data=damaged)
    assert "1 of 48 images cannot be read" in message
    assert victims[0].name in message
    assert "--on_bad_image skip" in message
    done = run(data=str(damaged), on_bad_image="skip", method="linear")
    assert done.record["images"] == {"train": 47, "val": 16, "test": 23}
    assert [entry[0] for entry in done.record["rejected_images"]] == [str(path) for path in victims]
    assert victims[1].relative_to(damaged).as_posix() not in set(done.predictions["id"])


def test_an_occupied_output_folder(refused, tmp_path):
    occupied = tmp_path / "occupied"
    occupied.mkdir()
    (occupied / "notes.txt").write_text("mine")
    assert "is not empty; choose another folder or pass --overwrite_output_dir" in refused(output_dir=occupied)
    assert [path.name for path in occupied.iterdir()] == ["notes.txt"]
    assert "--output_dir is missing" in refused(output_dir=None)


def test_an_occupied_folder_can_be_written_into(run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    done = run(method="linear", overwrite_output_dir=True)
    assert (done.folder / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_nam_or_path": "x"}, "unknown option --model_nam_or_path; did you mean --model_name_or_path?"),
        ({"method": "fulll"}, "--method fulll"),
        ({"method": "lora", "lora_targets": ["qkv"]}, "--lora_targets qkv"),
        ({"method": "lora", "lora_rank": 0}, "--lora_rank 0 must be at least 1"),
        ({"image_size": 50}, "--image_size 50 is not a multiple of the model's patch size 8"),
        ({"drop_path": 1.5}, "--drop_path 1.5"),
        ({"random_erasing": 2}, "--random_erasing 2.0"),
        ({"layer_decay": 0}, "--layer_decay 0.0 must be above 0 and at most 1"),
        ({"label_smoothing_factor": 1}, "--label_smoothing_factor 1.0"),
        ({"mixup": -1}, "--mixup -1.0 must be at least 0"),
        ({"num_train_epochs": 0}, "--num_train_epochs 0.0 must be above 0"),
        ({"resume_from_checkpoint": "latest"}, "--resume_from_checkpoint latest: there is no checkpoint in"),
        ({"problem_type": "ordinal"}, "problem_type 'ordinal' is unknown"),
        ({"model_name_or_path": None, "config_name": "retfound-tiny", "image_size": 50}, "is not a multiple of"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_options_that_make_no_sense(refused, options, message):
    assert message in refused(**options)


def test_options_that_need_classes(refused, table_set):
    numbers = {"data": table_set, "label_columns": ["level"], "problem_type": "regression"}
    assert "--mixup and --cutmix mix classes, and the targets are numbers" in refused(mixup=0.8, **numbers)
    assert "--class_weights balanced needs classes" in refused(class_weights="balanced", **numbers)
    assert "--sampler balanced needs one class per image" in refused(sampler="balanced", **numbers)
    findings = {"data": table_set, "label_columns": ["red", "bright"]}
    assert "--sampler balanced needs one class per image" in refused(sampler="balanced", **findings)
    assert "split fractions" in refused(split_fractions=[0.5, 0.5], data=table_set, label_columns=["red"])


def test_a_stock_model_of_another_size(run, refused, stock_folder):
    options = {"model_name_or_path": str(stock_folder("vit")), "method": "linear"}
    assert run(image_size=48, **options).metrics["auroc"] > 0.9
    assert "--image_size 50 is not a multiple of the model's patch size 8" in refused(image_size=50, **options)


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_an_options_file_does_what_flags_do(encoder_folder, planted, cache_dir, tmp_path, suffix):
    options = {
        "model_name_or_path": str(encoder_folder), "data": str(planted), "cache_dir": str(cache_dir),
        "method": "linear", "use_cpu": True, "dataloader_num_workers": 0, "split_fractions": [0.6, 0.2, 0.2],
    }  # fmt: skip
    file = tmp_path / f"options.{suffix}"
    text = json.dumps if suffix == "json" else yaml.safe_dump
    file.write_text(text({**options, "output_dir": str(tmp_path / "from-file")}))
    assert run_command(main, [str(file), "--seed", "3"]) == 0
    words = ["--seed", "3", "--output_dir", str(tmp_path / "from-flags")]
    for name, value in options.items():
        words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    assert run_command(main, words) == 0
    records = [json.loads((tmp_path / name / "run.json").read_text()) for name in ("from-file", "from-flags")]
    differing = {name for name, value in records[0]["arguments"].items() if records[1]["arguments"][name] != value}
    assert differing <= {"output_dir", "logging_dir", "run_name"}
    assert records[0]["seed"] == 3
    contents = [(tmp_path / name / "predictions.csv").read_bytes() for name in ("from-file", "from-flags")]
    assert contents[0] == contents[1]


def test_a_wrong_name_in_an_options_file(tmp_path, capsys):
    (tmp_path / "options.yaml").write_text("model_nam_or_path: x\n")
    assert run_command(main, [str(tmp_path / "options.yaml")]) == 2
    assert "unknown option --model_nam_or_path; did you mean --model_name_or_path?" in capsys.readouterr().err


def test_help_lists_the_recipe(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for words in ("--layer_decay", "(default: 0.65)", "--drop_path", "--class_weights", "{full,lora,linear}"):
        assert words in text
