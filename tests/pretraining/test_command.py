"""The command line: flags, files of options, and one line for every mistake."""

import dataclasses
import json

import pytest

from retfound_hf.errors import RetFoundError
from retfound_hf.options import run_command
from retfound_hf.pretraining.arguments import DataArguments, ModelArguments, PretrainingArguments
from retfound_hf.pretraining.objectives import find_objective
from retfound_hf.pretraining.objectives.base import Recipe
from retfound_hf.pretraining.objectives.simclr import RESNET_RECIPE
from retfound_hf.pretraining.pretrain import main


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (
            {"config_name": "retfound-cpf"},
            "'retfound-cpf' is unknown; did you mean retfound-cfp\\?; --objective mae takes: ",
        ),
        ({"model_name_or_path": None}, "give --config_name PRESET .from scratch., --model_name_or_path FOLDER"),
        ({"objective": "simclrr"}, "--objective 'simclrr' is unknown.*; accepted: mae"),
        ({"mask_ratio": 1.0}, "--mask_ratio 1.0 must be above 0 and below 1"),
        ({"mask_ratio": 0.0}, "--mask_ratio 0.0 must be above 0 and below 1"),
        ({"modality": "xray"}, "--modality: invalid choice: 'xray'"),
        ({"image_size": 0}, "--image_size 0 must be at least 1 pixel"),
        ({"train_data": None}, "--train_data is missing; give a folder of shards made by prepare_images"),
        ({"train_data": ["/absent/shards"]}, "--train_data /absent/shards cannot be read"),
        ({"max_bad_share": 1.5}, "--max_bad_share 1.5 is a share"),
        ({"probe_epochs": 0}, "--probe_epochs 0.0 must be above 0"),
        ({"preview_steps": -1}, "--preview_steps -1 must be at least 0"),
        ({"max_steps": None, "num_train_epochs": 0}, "--num_train_epochs 0.0 must be above 0"),
        ({"per_device_train_batch_size": 0}, "--per_device_train_batch_size 0 must be at least 1"),
        ({"per_device_train_batch_size": 300}, "has 203 images, and one step takes 300 .*; give a smaller --per"),
        ({"gradient_accumulation_steps": 0}, "--gradient_accumulation_steps 0 must be at least 1"),
        ({"seed": -1}, r"--seed -1 must be at least 0 and below 2\*\*32"),
        ({"seed": 2**32}, "--seed 4294967296 must be at least 0"),
        ({"logging_steps": 0}, "--logging_steps 0 must be at least 1"),
        ({"save_steps": -1}, "--save_steps -1 must be at least 0"),
        ({"save_total_limit": -1}, "--save_total_limit -1 must be at least 0"),
        ({"warmup_steps": -2}, "--warmup_steps -2.0 must be at least 0"),
        ({"learning_rate": 0}, "--learning_rate 0.0 must be above 0"),
        ({"base_learning_rate": -1e-3}, "--base_learning_rate -0.001 must be above 0"),
        ({"temperature": 0.2}, "--temperature is not an option of --objective mae, which has no options of this kind"),
        ({"views": "published"}, "--views is not an option of --objective mae, which has no options of this kind"),
        (
            {"objective": "simclr", "gradient_accumulation_steps": 2},
            "--gradient_accumulation_steps 2: simclr compares the images of a forward pass with each other",
        ),
        *(
            (
                {"objective": name, "per_device_train_batch_size": 1},
                f"--per_device_train_batch_size 1: {name} compares the images of a step .*; give at least 2",
            )
            for name in ("simclr", "swav", "moco_v3")
        ),
        (
            {"objective": "simclr", "num_prototypes": 9},
            "--num_prototypes is not an option .*which has --temperature, --head_width, --views",
        ),
        ({"objective": "simclr", "mask_ratio": 0.5}, "--mask_ratio is not an option of --objective simclr"),
        ({"objective": "swav", "sinkhorn_epsilon": 0}, "--sinkhorn_epsilon 0.0 must be above 0"),
        ({"objective": "dino", "sinkhorn_epsilon": 0.03}, "--sinkhorn_epsilon is not an option of --objective dino"),
        ({"objective": "simclr", "temperature": 0}, "--temperature 0.0 must be above 0"),
        ({"objective": "simclr", "config_name": "retfound-tiny"}, "exclude each other with --objective simclr"),
        ({"objective": "simclr", "image_size": 48}, "--image_size 48 differs from the 32 of"),
        ({"adam_beta2": 1}, "--adam_beta2 1.0 must be at least 0 and below 1"),
        ({"on_non_finite": "pray"}, "--on_non_finite.*: invalid choice: 'pray'"),
        ({"bf16": True, "fp16": True}, "--fp16 and --bf16 exclude each other"),
        ({"report_to": ["paper"]}, "Accelerate refuses its settings: .*paper"),
        ({"max_step": 3}, "unknown option --max_step; did you mean --max_steps"),
        ({"max_steps": "many"}, "--max_steps.*: invalid int value: 'many'"),
        ({"resume_from_checkpoint": "/absent/checkpoint-3"}, "--resume_from_checkpoint /absent/checkpoint-3.*"),
    ],
    ids=str,
)
def test_mistakes_are_said_in_one_line(pretrain_words, tmp_path, flags, reason):
    with pytest.raises(RetFoundError, match=reason) as error:
        main(pretrain_words(tmp_path / "out", **flags))
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("out/*.json")) and not list(tmp_path.glob("out/checkpoint-*"))


def test_a_mistyped_model_is_told_before_the_images_are_copied(pretrain_words, tmp_path):
    with pytest.raises(RetFoundError, match="no-such-model"):
        main(
            pretrain_words(tmp_path / "out", model_name_or_path="./no-such-model", config_name=None,
                           cache_dir=str(tmp_path / "cache"))
        )  # fmt: skip
    assert not (tmp_path / "cache").exists()


def test_a_full_output_folder_is_not_touched(pretrain_words, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(RetFoundError, match="is not empty; choose another folder or pass --overwrite_output_dir"):
        main(pretrain_words(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_a_file_takes_the_place_of_flags(quick_options, pretrain_words, tmp_path, suffix, capsys):
    path = tmp_path / f"options{suffix}"
    path.write_text(json.dumps(quick_options(tmp_path / "file", max_steps=3)))  # JSON is YAML too
    main([str(path), "--seed", "5"])
    main(pretrain_words(tmp_path / "flags", max_steps=3, seed=5))
    file, flags = tmp_path / "file", tmp_path / "flags"
    assert (file / "model.safetensors").read_bytes() == (flags / "model.safetensors").read_bytes()
    record, expected = (json.loads((folder / "run.json").read_text()) for folder in (file, flags))
    assert record["arguments"] == {**expected["arguments"], "output_dir": str(file)}
    assert (record["arguments"]["seed"], record["arguments"]["max_steps"], record["steps"]) == (5, 3, 3)
    assert capsys.readouterr().out.splitlines() == [str(file), str(flags)]


def test_the_defaults_are_the_recipe():
    args = PretrainingArguments(output_dir="x").with_recipe(find_objective("mae").recipe)
    assert args.peak_learning_rate(8 * args.per_device_train_batch_size) == pytest.approx(1e-3)
    assert args.warmup_steps * args.num_train_epochs == pytest.approx(15)
    assert (args.adam_beta1, args.adam_beta2, args.weight_decay, args.max_grad_norm) == (0.9, 0.95, 0.05, 0)
    assert args.final_weight_decay is None
    assert PretrainingArguments(output_dir="x", learning_rate=1e-3).peak_learning_rate(1792) == 1e-3


def test_flags_override_the_recipe():
    recipe = Recipe(base_learning_rate=5e-4, warmup_steps=0.1, weight_decay=0.04, final_weight_decay=0.4)
    filled = PretrainingArguments(output_dir="x").with_recipe(recipe)
    assert {name: getattr(filled, name) for name in vars(recipe)} == vars(recipe)
    given = PretrainingArguments(output_dir="x", weight_decay=0.0, warmup_steps=0.0, max_grad_norm=1.0)
    filled = given.with_recipe(recipe)
    assert (filled.weight_decay, filled.warmup_steps, filled.max_grad_norm) == (0.0, 0.0, 1.0)
    # A decay that was asked for does not rise to the recipe's.
    assert filled.final_weight_decay is None and filled.adam_beta2 == 0.999


@pytest.mark.parametrize(("optim", "recipe"), [("adamw", RESNET_RECIPE), ("lars", Recipe(5e-4, 0.1, 0.04))])
def test_another_optimiser_does_not_take_the_rate_of_the_recipes(optim, recipe):
    with pytest.raises(RetFoundError, match=f"--optim {optim} is not the recipe's, whose learning rate"):
        PretrainingArguments(output_dir="x", optim=optim).with_recipe(recipe)
    for rate in ({"learning_rate": 1e-3}, {"base_learning_rate": 1e-3}):
        given = PretrainingArguments(output_dir="x", optim=optim, weight_decay=0.1, **rate)
        assert given.with_recipe(recipe).optim == optim
    assert PretrainingArguments(output_dir="x", optim=recipe.optim).with_recipe(recipe).optim == recipe.optim


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    for part in (ModelArguments, DataArguments, PretrainingArguments):
        for field in dataclasses.fields(part):
            assert f"--{field.name}" in text


def test_a_mistake_exits_with_2_and_one_line(capsys):
    assert run_command(main, ["--output_dir", "x"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: give --config_name PRESET") and shown.err.count("\n") == 1
