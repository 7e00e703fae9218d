"""Arguments: flags, files of options, keywords, and one line with the field for every mistake."""

import json
from dataclasses import fields

import pytest

from retfound_hf.errors import BadArgumentError, BadDataError, BadModelError, MissingPackageError, RetFoundError
from retfound_hf.options import run_command
from retfound_hf.pretraining.arguments import PretrainingArguments, objective_arguments
from retfound_hf.pretraining.objectives import OBJECTIVES
from retfound_hf.pretraining.objectives.base import Recipe
from retfound_hf.pretraining.objectives.simclr import RESNET_RECIPE
from retfound_hf.pretraining.pretrain import main, pretrain

BAD_ARGUMENTS = [
    {"config_name": "retfound-cpf"}, {"model_name_or_path": None}, {"objective": "simclrr"}, {"mask_ratio": 1.0},
    {"mask_ratio": 0.0}, {"modality": "xray"}, {"image_size": 0}, {"train_data": None}, {"max_bad_share": 1.5},
    {"probe_epochs": 0}, {"preview_steps": -1}, {"num_train_epochs": 0, "max_steps": None},
    {"per_device_train_batch_size": 0}, {"per_device_train_batch_size": 300}, {"gradient_accumulation_steps": 0},
    {"seed": -1}, {"seed": 2**32}, {"logging_steps": 0}, {"save_steps": -1}, {"save_total_limit": -1},
    {"warmup_steps": -2}, {"learning_rate": 0}, {"base_learning_rate": -1e-3}, {"adam_beta2": 1},
    {"resume_from_checkpoint": "/absent/checkpoint-3"}, {"mixed_shards": 0},
    {"temperature": 0.2}, {"views": "published"}, {"gradient_accumulation_steps": 2, "objective": "simclr"},
    *({"per_device_train_batch_size": 1, "objective": name} for name in ("simclr", "swav", "moco_v3")),
    {"num_prototypes": 9, "objective": "simclr"}, {"mask_ratio": 0.5, "objective": "simclr"},
    {"sinkhorn_epsilon": 0, "objective": "swav"}, {"sinkhorn_epsilon": 0.03, "objective": "dino"},
    {"temperature": 0, "objective": "simclr"}, {"teacher_momentum": 1.1, "objective": "dino"},
    {"report_to": "paper"}, {"report_to": ["trackio", "paper"]},
    {"config_name": "retfound-tiny", "objective": "simclr"}, {"image_size": 48, "objective": "simclr"},
]  # fmt: skip
OTHERS = [
    ({"on_non_finite": "pray"}, RetFoundError), ({"max_step": 3}, RetFoundError),
    ({"max_steps": "many"}, RetFoundError),
    ({"train_data": ["/absent/shards"]}, BadDataError), ({"model_name_or_path": "/absent/model"}, RetFoundError),
]  # fmt: skip


@pytest.mark.parametrize("flags", BAD_ARGUMENTS, ids=str)
def test_mistakes_name_their_field_and_touch_nothing(pretrain_words, tmp_path, capsys, flags):
    words = pretrain_words(tmp_path / "out", **flags)
    with pytest.raises(BadArgumentError) as error:
        main(words)
    field = next(iter(flags))
    assert error.value.field == field
    assert "\n" not in str(error.value) and "--" not in str(error.value)
    assert run_command(main, words) == 2
    assert f"--{error.value.field}" in capsys.readouterr().err
    assert not list(tmp_path.glob("out/*.json")) and not list(tmp_path.glob("out/checkpoint-*"))


@pytest.mark.parametrize(("flags", "kind"), OTHERS, ids=str)
def test_other_mistakes_are_one_line(pretrain_words, tmp_path, flags, kind):
    with pytest.raises(kind) as error:
        main(pretrain_words(tmp_path / "out", **flags))
    assert "\n" not in str(error.value)


def test_precisions_exclude_each_other():
    for options in ({"bf16": True, "fp16": True}, {"fp16": True}):
        with pytest.raises(BadArgumentError) as error:
            PretrainingArguments("out", **options)
        assert error.value.field == "fp16"


def test_keywords_are_checked_as_flags_are(quick_options, tmp_path):
    for wrong in ({"optim": "sgd"}, {"on_non_finite": "pray"}, {"objective": "simclr", "views": "none"}):
        with pytest.raises(BadArgumentError) as error:
            pretrain(**quick_options(tmp_path / "out", **wrong))
        assert error.value.field == list(wrong)[-1]
    with pytest.raises(TypeError):
        pretrain(**quick_options(tmp_path / "out", max_step=3))


def test_a_mistyped_model_is_told_before_the_images_are_copied(start, tmp_path):
    with pytest.raises(RetFoundError):
        start(model_name_or_path="./no-such-model", cache_dir=str(tmp_path / "cache"))
    assert not (tmp_path / "cache").exists()


def test_a_full_output_folder_is_not_touched(start, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(RetFoundError):
        start(".")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_file_takes_the_place_of_flags(quick_options, pretrain_words, tmp_path, capsys):
    path = tmp_path / "options.yaml"
    path.write_text(json.dumps(quick_options(tmp_path / "file", max_steps=3)))  # JSON is YAML too
    main([str(path), "--seed", "5"])
    main(pretrain_words(tmp_path / "flags", max_steps=3, seed=5))
    file, flags = tmp_path / "file", tmp_path / "flags"
    assert (file / "model.safetensors").read_bytes() == (flags / "model.safetensors").read_bytes()
    record, expected = (json.loads((folder / "run.json").read_text()) for folder in (file, flags))
    assert record["arguments"] == {**expected["arguments"], "output_dir": str(file)}
    assert (record["arguments"]["seed"], record["arguments"]["max_steps"], record["steps"]) == (5, 3, 3)
    assert capsys.readouterr().out.splitlines() == [str(file), str(flags)]


def test_the_options_of_all_objectives_are_flags_with_their_published_values(capsys):
    kind = objective_arguments()
    names = {field.name for objective in OBJECTIVES.values() for field in fields(objective.Options)}
    assert {field.name for field in fields(kind)} == {"objective", *names} >= {"temperature", "views", "local_crops"}
    assert all(getattr(kind(), name) is None for name in names)
    assert kind(objective="dino").make_options() == OBJECTIVES["dino"].Options()
    assert kind(objective="dino", local_crops=2).make_options().local_crops == 2
    with pytest.raises(SystemExit):
        main(["--help"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "simclr, swav: of the softmax (0.1)" in printed and "what is learned: mae, simclr" in printed


def test_the_defaults_are_the_recipe():
    args = PretrainingArguments(output_dir="x")
    args = args.with_recipe(OBJECTIVES["mae"].recipe, 8 * args.per_device_train_batch_size)
    assert args.peak_learning_rate(8 * args.per_device_train_batch_size) == pytest.approx(1e-3)
    assert args.warmup_steps * args.num_train_epochs == pytest.approx(15)
    assert (args.adam_beta1, args.adam_beta2, args.weight_decay, args.max_grad_norm) == (0.9, 0.95, 0.05, 0)
    assert args.final_weight_decay is None
    assert PretrainingArguments(output_dir="x", learning_rate=1e-3).peak_learning_rate(1792) == 1e-3


def test_small_batches_take_the_square_root_of_the_recipe_unless_a_rate_is_given():
    recipe, given = OBJECTIVES["mae"].recipe, PretrainingArguments(output_dir="x")
    assert given.with_recipe(recipe, 1792).learning_rate == pytest.approx(1e-3)
    rates = [given.with_recipe(recipe, batch).peak_learning_rate(batch) for batch in (16, 64, 256, 512)]
    assert rates == pytest.approx([recipe.base_learning_rate * factor for factor in (0.25, 0.5, 1, 2)])
    fresh = [given.with_recipe(recipe, batch, True).learning_rate for batch in (16, 256, 1792)]
    assert fresh == pytest.approx([5e-4, 5e-4, 1e-3])
    linear = PretrainingArguments(output_dir="x", base_learning_rate=8e-4).with_recipe(recipe, 32)
    assert linear.peak_learning_rate(32) == pytest.approx(1e-4)
    assert PretrainingArguments(output_dir="x").with_recipe(RESNET_RECIPE, 32).peak_learning_rate(32) == 0.3 / 8


def test_flags_override_the_recipe():
    recipe = Recipe(base_learning_rate=5e-4, warmup_steps=0.1, weight_decay=0.04, final_weight_decay=0.4)
    assert PretrainingArguments(output_dir="x").with_recipe(recipe).final_weight_decay == 0.4
    own = PretrainingArguments(output_dir="x", weight_decay=0.0, warmup_steps=0.0).with_recipe(recipe)
    assert (own.weight_decay, own.warmup_steps, own.final_weight_decay) == (0.0, 0.0, None)


def test_another_optimiser_needs_its_own_rate_and_decay():
    for options in ({}, {"weight_decay": 0.1}, {"learning_rate": 0.1}):
        with pytest.raises(BadArgumentError) as error:
            PretrainingArguments(output_dir="x", optim="adamw", **options).with_recipe(RESNET_RECIPE)
        assert error.value.field == "optim"
    own = PretrainingArguments(output_dir="x", optim="adamw", learning_rate=1e-3, weight_decay=0.1)
    assert own.with_recipe(RESNET_RECIPE).optim == "adamw"


def test_the_command_refuses_in_one_line_with_status_2(pretrain_words, tmp_path, capsys):
    assert run_command(main, pretrain_words(tmp_path / "out", model_name_or_path=str(tmp_path / "adapter"))) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_an_adapter_is_refused(start, tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(BadModelError):
        start(model_name_or_path=str(tmp_path / "adapter"))


@pytest.mark.parametrize("asked", ["trackio", ["none", "trackio"]])
def test_a_tracker_that_is_not_installed_is_refused_with_its_command(asked, pretrain_words, tmp_path, monkeypatch):
    monkeypatch.setattr("retfound_hf.pretraining.arguments.get_available_trackers", lambda: [])
    monkeypatch.setattr("retfound_hf.options._is_there", lambda package: False)
    with pytest.raises(MissingPackageError) as error:
        PretrainingArguments(output_dir="out", report_to=asked)
    assert error.value.package == error.value.extra == "trackio"
    with pytest.raises(MissingPackageError):
        main(pretrain_words(tmp_path / "out", report_to=asked))
    assert not (tmp_path / "out").exists()


def test_a_tracker_that_does_not_start_ends_the_run_before_its_first_step(pretrain_words, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no login\nhere")

    monkeypatch.setattr("accelerate.Accelerator.init_trackers", refuse)
    with pytest.raises(BadArgumentError) as error:
        main(pretrain_words(tmp_path / "out", report_to="tensorboard"))
    assert error.value.field == "report_to" and "no login here" in str(error.value)
    assert not list(tmp_path.glob("out/*.json"))
