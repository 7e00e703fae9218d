"""Starting points by name, through the commands: fine-tune, evaluate, embed, load."""

import json
import shutil

import pandas as pd
import pytest
import torch
from transformers import AutoModelForImageClassification, pipeline

from retfound_hf.cli import command
from retfound_hf.options import run_command

QUICK = ["--use_cpu", "--dataloader_num_workers", "0", "--disable_tqdm", "true", "--num_train_epochs", "2",
         "--learning_rate", "1e-3", "--augmentation", "light", "--overwrite_output_dir"]  # fmt: skip


@pytest.fixture
def folders(stock_folder, tmp_path, monkeypatch):
    """A working directory with small models in the places of the large ones."""
    monkeypatch.chdir(tmp_path)
    for name, folder in {
        "sl-imagenet": stock_folder("vit"),
        "ssl-imagenet": stock_folder("vit_mae"),
        "dinov2": stock_folder("dinov2"),
        "dinov3": stock_folder("dinov3_vit"),
    }.items():
        shutil.copytree(folder, tmp_path / name)
    return tmp_path


def go(name, *words):
    assert run_command(command(name), [*map(str, words)]) == 0


@pytest.mark.parametrize("name", ["sl-imagenet", "ssl-imagenet", "dinov3"])
def test_from_a_name_to_predictions(folders, planted, cache_dir, name):
    data = ["--data", planted, "--cache_dir", cache_dir]
    go("finetune", "--model_name_or_path", name, *data, "--output_dir", "out", *QUICK)
    card = (folders / "out" / "README.md").read_text()
    assert f"Started from `{name}`" in card
    go("evaluate", "--model_name_or_path", "out", *data, "--output_dir", "again", "--dataloader_num_workers", "0")
    assert (folders / "again" / "predictions.csv").read_bytes() == (folders / "out" / "predictions.csv").read_bytes()
    model = AutoModelForImageClassification.from_pretrained("out")
    assert model.fc_norm.weight.shape == (32,)
    first = pd.read_csv("out/predictions.csv").iloc[0]
    found = {row["label"]: row["score"] for row in pipeline("image-classification", "out")(str(planted / first["id"]))}
    assert found["amd"] == pytest.approx(first["prob/amd"], abs=1e-4)
    go(
        "embed",
        "--model_name_or_path",
        name,
        "--data",
        planted / "test",
        "--output_dir",
        "e",
        "--dataloader_num_workers",
        "0",
    )
    assert len(pd.read_parquet("e/features.parquet")["vector"][0]) == 32


@pytest.mark.parametrize("name", ["sl-imagenet", "dinov3"])
def test_an_adapter_finds_its_start(folders, planted, cache_dir, name):
    data = ["--data", planted, "--cache_dir", cache_dir]
    go("finetune", "--model_name_or_path", name, *data, "--output_dir", "out", "--method", "lora", *QUICK)
    go("evaluate", "--model_name_or_path", "out", *data, "--output_dir", "again", "--dataloader_num_workers", "0")
    first, second = (pd.read_csv(f"{folder}/predictions.csv") for folder in ("out", "again"))
    assert first["prob/amd"].to_numpy() == pytest.approx(second["prob/amd"].to_numpy(), abs=1e-5)


def test_the_normalisation_is_that_of_the_weights(folders, planted, cache_dir):
    """The stock folders here say 0.5, as the ViT of ImageNet-21k does; the crop is RETFound's for all."""
    go("finetune", "--model_name_or_path", "sl-imagenet", "--data", planted, "--cache_dir", cache_dir, "--output_dir",
       "out", "--method", "linear", "--use_cpu", "--dataloader_num_workers", "0")  # fmt: skip
    stored = json.loads((folders / "out" / "preprocessor_config.json").read_text())
    assert stored["image_mean"] == stored["image_std"] == [0.5, 0.5, 0.5]
    assert stored["do_fundus_crop"] is True


@pytest.mark.parametrize("command_name", ["finetune", "embed", "evaluate"])
@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("sl-imagenet", "`hf download google/vit-large-patch16-224-in21k --local-dir sl-imagenet`"),
        ("ssl-retinal", "`retfound pretrain --config_name retfound-cfp --train_data SHARDS --output_dir ssl-retinal`"),
        ("retfound-oct", "`retfound fetch retfound-oct`"),
    ],
)
def test_without_weights_one_line_says_how_to_bring_them(
    tmp_path, planted, monkeypatch, capsys, command_name, name, told
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    words = ["--model_name_or_path", name, "--data", planted, "--output_dir", "out"]
    assert run_command(command(command_name), [*map(str, words)]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: model ")
    assert told in error
    assert not (tmp_path / "out" / "config.json").exists()


def test_features_do_not_depend_on_the_head(folders):
    """The encoder that `embed` reads is the one that fine-tuning starts from."""
    from retfound_hf.finetuning.classifier import build_classifier
    from retfound_hf.models.loading import load_encoder

    labels = {"num_labels": 2, "id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "b": 1}, "problem_type": None}
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for name in ("sl-imagenet", "ssl-imagenet", "dinov2", "dinov3"):
        with torch.no_grad():
            model = build_classifier(name, None, labels).eval()
            assert torch.equal(load_encoder(name)(pixels).patch_mean, model.vit(pixels).patch_mean)
