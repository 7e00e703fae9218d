"""Rows from outside the package: a metric, an objective, a method and a backbone run through the commands."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from tiny import SIZES, save_planted_set
from torch import nn
from transformers import DeiTConfig, DeiTModel

import retfound_hf as rf
from retfound_hf.cli import main
from retfound_hf.evaluation.metrics import CLASSIFICATION, Metric
from retfound_hf.finetuning.methods import Full
from retfound_hf.models.backbones import Backbone
from retfound_hf.pretraining.objectives.base import Objective, ObjectiveOptions, Recipe


def error_rate(rows) -> np.ndarray:
    """Share of wrong rows."""
    return 1 - rf.METRICS["accuracy"].function(rows)


class BiasOnly(Full):
    """Biases and the head alone are trained (Zaken et al. 2022)."""

    name, title, trains, layer_decay, drop_path = "bias_only", "bias only", "the biases and the head", None, 0.0

    def adapt(self, model: nn.Module) -> nn.Module:
        for name, parameter in model.named_parameters():
            parameter.requires_grad = "bias" in name or name.startswith(("classifier", "fc_norm"))
        return model


class MeanColour(Objective):
    """Regression of an image's mean colour from its feature vector."""

    name, title, citation = "mean_colour", "mean colour prediction", "nobody"
    log_names = ("error",)
    supports_accumulation = True
    recipe = Recipe(base_learning_rate=1e-3, warmup_steps=0, weight_decay=0.0)

    @dataclass(kw_only=True)
    class Options(ObjectiveOptions):
        pass

    def __init__(self, model, settings=None, options=None):
        super().__init__()
        self.model, self.head = model, nn.Linear(model.config.hidden_size, 3)
        self.draw = lambda count, generator: {"unused": torch.zeros(count, 1)}

    def views(self, images, draws):
        return {"pixels": nn.functional.interpolate(images.float() / 255, SIZES["image_size"])}

    def forward(self, views):
        found = self.head(self.model(views["pixels"]).pooler_output)
        loss = (found - views["pixels"].mean(dim=(2, 3))).square().mean()
        return loss, loss.detach()[None]


@pytest.fixture
def rows(monkeypatch):
    """The four rows, as a user's script adds them, for one test."""
    monkeypatch.setitem(
        rf.METRICS, "error_rate", Metric("error_rate", "Error rate", False, CLASSIFICATION, error_rate)
    )
    monkeypatch.setitem(rf.METHODS, "bias_only", BiasOnly)
    monkeypatch.setitem(rf.OBJECTIVES, "mean_colour", MeanColour)
    monkeypatch.setitem(rf.BACKBONES, "deit", Backbone("deit", "DeiT", prefix_tokens=lambda config: 2))


@pytest.fixture
def data(tmp_path) -> Path:
    return save_planted_set(tmp_path / "images", {"train": 12, "val": 8, "test": 16}, random=0.7)


@pytest.fixture
def deit(tmp_path) -> Path:
    torch.manual_seed(0)
    sizes = {name: value for name, value in SIZES.items() if not name.startswith("decoder")}
    DeiTModel(DeiTConfig(**sizes), add_pooling_layer=False).save_pretrained(tmp_path / "deit")
    rf.RetFoundImageProcessor.for_image_size(SIZES["image_size"]).save_pretrained(tmp_path / "deit")
    return tmp_path / "deit"


def test_metric_method_and_backbone_reach_folder_card_and_study(rows, data, deit, tmp_path):
    out = tmp_path / "classifier"
    words = [
        "--model_name_or_path", str(deit), "--data", str(data), "--method", "bias_only", "--num_train_epochs", "1",
        "--use_cpu", "--dataloader_num_workers", "0", "--cache_dir", str(tmp_path / "cache"),
    ]  # fmt: skip
    assert main(["finetune", *words, "--output_dir", str(out), "--confidence_intervals", "--resamples", "100"]) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["error_rate"] == pytest.approx(1 - metrics["accuracy"])
    low, high = metrics["error_rate_ci95"]
    assert low <= metrics["error_rate"] <= high
    card = (out / "README.md").read_text()
    assert "Error rate" in card and BiasOnly.trains in card
    assert main(["evaluate", "--model_name_or_path", str(out), "--data", str(data), "--output_dir",
                 str(tmp_path / "evaluation"), "--dataloader_num_workers", "0"]) == 0  # fmt: skip
    assert "error_rate" in json.loads((tmp_path / "evaluation" / "metrics.json").read_text())

    study = {
        "models": {"DeiT": str(deit)},
        "methods": ["bias_only"],
        "data": {"Planted": {"data": str(data), "modality": "cfp"}},
        "seeds": [0, 1],
        "finetune": {"num_train_epochs": 1, "use_cpu": True, "dataloader_num_workers": 0},
        "metrics": ["error_rate", "auroc"],
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    assert main(["study", str(tmp_path / "study.yaml"), "--output_dir", str(tmp_path / "study")]) == 0
    summary = pd.read_csv(tmp_path / "study" / "summary.csv")
    assert {"error_rate", "auroc"} <= set(summary["metric"]) and set(summary["method"]) == {"bias_only"}
    assert "Error rate" in (tmp_path / "study" / "report.html").read_text()


def test_objective_reaches_a_folder_with_a_card(rows, tmp_path):
    for index in range(16):
        pixels = np.random.default_rng(index).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        path = tmp_path / "images" / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
    shards, out = tmp_path / "shards", tmp_path / "encoder"
    assert main(["prepare_images", str(tmp_path / "images"), str(shards), "--modality", "oct",
                 "--image_size", "64", "--min_side", "32", "--num_workers", "1"]) == 0  # fmt: skip
    assert main(["pretrain", "--objective", "mean_colour", "--config_name", "retfound-tiny", "--modality", "oct",
                 "--image_size", "32", "--train_data", str(shards), "--output_dir", str(out), "--max_steps", "2",
                 "--per_device_train_batch_size", "4", "--dataloader_num_workers", "0"]) == 0  # fmt: skip
    assert MeanColour.title in (out / "README.md").read_text()
    assert rf.embed(str(out), str(tmp_path / "images"), dataloader_num_workers=0).vectors.shape == (16, 192)
