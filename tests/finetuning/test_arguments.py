"""Arguments: bad input is one line and leaves nothing behind; an options file does what flags do."""

import json
import shutil

import pandas as pd
import pytest
import yaml

from retfound_hf.errors import (
    BadArgumentError,
    BadDataError,
    BadModelError,
    MissingPackageError,
    OutputError,
    RetFoundError,
)
from retfound_hf.finetuning.finetune import main
from retfound_hf.finetuning.finetune import run as run_finetuning
from retfound_hf.models.loading import load_processor
from retfound_hf.options import run_command


@pytest.fixture
def refused(run, tmp_path):
    """Runs with options that are refused before training, and gives the error."""

    def refuse(**options) -> RetFoundError:
        with pytest.raises(RetFoundError) as error:
            run(**options)
        if "output_dir" not in options:
            assert not (tmp_path / "out").exists()
        return error.value

    return refuse


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"config_name": "retfound-huge"}, "config_name"),
        ({"config_name": "retfound-tiny", "method": "lora"}, "config_name"),
        ({"config_name": "retfound-tiny", "model_name_or_path": "x"}, "model_name_or_path"),
        ({"model_name_or_path": None}, "model_name_or_path"),
        ({"config_name": "retfound-tiny", "image_size": 50}, "image_size"),
        ({"output_dir": ""}, "output_dir"),
        ({"method": "fulll"}, "method"),
        ({"method": "lora", "lora_targets": ["qkv"]}, "lora_targets"),
        ({"method": "lora", "lora_rank": 0}, "lora_rank"),
        ({"image_size": 50}, "image_size"),
        ({"train_fraction": 0}, "train_fraction"),
        ({"drop_path": 1.5}, "drop_path"),
        ({"random_erasing": 2}, "random_erasing"),
        ({"layer_decay": 0}, "layer_decay"),
        ({"label_smoothing_factor": 1}, "label_smoothing_factor"),
        ({"mixup": -1}, "mixup"),
        ({"num_train_epochs": 0}, "num_train_epochs"),
        ({"target_sensitivity": 90.0}, "target_sensitivity"),
        ({"metric_for_best_model": "f1"}, "metric_for_best_model"),
        ({"metric_for_best_model": "mae"}, "metric_for_best_model"),
        ({"report_to": "nothing"}, "report_to"),
        ({"save_strategy": "no"}, "save_strategy"),
        ({"train_sampling_strategy": "group_by_length"}, "train_sampling_strategy"),
        ({"batch_eval_metrics": True}, "batch_eval_metrics"),
        ({"dataloader_drop_last": True, "per_device_train_batch_size": 64}, "dataloader_drop_last"),
        ({"positive_class": "AMD"}, "positive_class"),
    ],
)
def test_options_that_make_no_sense(refused, options, field):
    error = refused(**options)
    assert isinstance(error, BadArgumentError) and error.field == field
    assert f"`{field}" in str(error)
    if options.get(field):
        assert error.value in (options[field], options[field][0] if isinstance(options[field], list) else None)


@pytest.mark.parametrize(
    "options",
    [
        {"optim": "lomo"}, {"eval_strategy": "no"}, {"dataloader_persistent_workers": True, "method": "full"},
        {"lr_scheduler_type": "warmup_stable_decay"}, {"deepspeed": "absent.json"},
    ],
)  # fmt: skip
def test_options_of_trainer_that_cannot_work(arguments, options):
    with pytest.raises(RetFoundError) as error:
        run_finetuning(arguments(**options))
    assert len(str(error.value).splitlines()) == 1


def test_unused_columns_are_none(run):
    assert run(remove_unused_columns=True, num_train_epochs=1).metrics["auroc"] > 0


def test_options_that_need_classes(refused, table_set):
    numbers = {"data": str(table_set), "label_columns": ["level"], "problem_type": "regression"}
    assert refused(mixup=0.8, **numbers).field == "mixup"
    assert refused(class_weights="balanced", **numbers).field == "class_weights"
    findings = {"data": str(table_set), "label_columns": ["red", "bright"]}
    for options in (numbers, findings):
        assert refused(sampler="balanced", **options).field == "sampler"


def test_models_that_are_not_there(refused, tmp_path, planted):
    for model in (tmp_path / "absent", planted):
        error = refused(model_name_or_path=str(model))
        assert isinstance(error, BadModelError) and error.model == str(model)


def test_data_that_cannot_be_used(refused, tmp_path, planted):
    def changed(name):
        return shutil.copytree(planted, tmp_path / name)

    shutil.rmtree(changed("incomplete") / "test")
    for path in (changed("emptied") / "train" / "amd").iterdir():
        path.unlink()
    metadata = pd.read_csv(changed("leaky") / "metadata.csv")
    metadata.loc[metadata["image"].str.startswith("test/"), "patient_id"] = "p000"
    metadata.to_csv(tmp_path / "leaky" / "metadata.csv", index=False)
    for name in ("absent", "incomplete", "emptied", "leaky"):
        refused(data=str(tmp_path / name))


def test_corrupt_images_are_named_or_skipped(refused, run, planted, tmp_path):
    damaged = shutil.copytree(planted, tmp_path / "damaged")
    victims = [sorted((damaged / split / "amd").iterdir())[0] for split in ("train", "test")]
    for path in victims:
        path.write_bytes(path.read_bytes()[:60])
    error = refused(data=str(damaged))
    assert isinstance(error, BadDataError) and victims[0].name in str(error)
    done = run(data=str(damaged), on_bad_image="skip", method="linear")
    assert done.record["images"] == {"train": 47, "val": 16, "test": 23}
    assert [entry[0] for entry in done.record["rejected_images"]] == [str(path) for path in victims]
    assert victims[1].relative_to(damaged).as_posix() not in set(done.predictions["id"])


def test_an_occupied_output_folder(run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError):
        run(method="linear")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes.txt"]
    done = run(method="linear", overwrite_output_dir=True)
    assert (done.folder / "notes.txt").read_text() == "mine"


def test_a_stock_model_of_another_size(run, refused, stock_folder):
    options = {"model_name_or_path": str(stock_folder("vit")), "method": "linear"}
    assert refused(image_size=50, **options).field == "image_size"
    done = run(image_size=48, **options)
    assert done.metrics["auroc"] > 0.9 and load_processor(str(done.folder)).size["height"] == 48


def test_an_options_file_does_what_flags_do(encoder_folder, planted, cache_dir, tmp_path):
    options = {
        "model_name_or_path": str(encoder_folder), "data": str(planted), "cache_dir": str(cache_dir),
        "method": "linear", "use_cpu": True, "dataloader_num_workers": 0, "split_fractions": [0.6, 0.2, 0.2],
    }  # fmt: skip
    file = tmp_path / "options.yaml"
    file.write_text(yaml.safe_dump({**options, "output_dir": str(tmp_path / "from-file")}))
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


@pytest.mark.parametrize(
    ("words", "flags"),
    [
        (["--config_name", "retfound-tiny", "--datta", "x"], ["--datta", "did you mean --data"]),
        (["--config_name", "retfound-tiny", "--method", "lora"], ["--method lora", "--model_name_or_path"]),
        (["--config_name", "retfound-tiny", "--mixup", "-1"], ["--mixup -1"]),
    ],
)
def test_the_command_says_it_in_one_line_with_flags(planted, tmp_path, capsys, words, flags):
    assert run_command(main, [*words, "--data", str(planted), "--output_dir", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ") and all(flag in line for flag in flags)
    assert not (tmp_path / "out").exists()


def test_a_tracker_that_is_not_installed_is_refused_with_its_command(refused, monkeypatch):
    monkeypatch.setattr("transformers.integrations.get_available_reporting_integrations", lambda: [])
    monkeypatch.setattr("retfound_hf.options._is_there", lambda package: False)
    error = refused(report_to=["tensorboard", "none"])
    assert isinstance(error, MissingPackageError) and error.extra == "tensorboard"
