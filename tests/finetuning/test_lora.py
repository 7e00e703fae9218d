"""LoRA: a small adapter with its head beside a base that stays as it is."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForImageClassification

from retfound_hf import RetFoundForImageClassification
from retfound_hf.errors import BadArgumentError, BadModelError
from retfound_hf.finetuning.classifier import build_classifier
from retfound_hf.finetuning.finetune import finetune
from retfound_hf.finetuning.methods import add_lora
from retfound_hf.models.loading import load_classifier, load_encoder, load_processor

LORA = {"method": "lora", "learning_rate": 1e-2, "num_train_epochs": 4}
LABELS = {"num_labels": 2, "id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "b": 1}, "problem_type": None}


def probabilities(model, processor, files) -> np.ndarray:
    with torch.no_grad():
        return model(**processor(files, return_tensors="pt")).logits.softmax(-1).numpy()


@pytest.fixture(scope="module")
def adapter_run(encoder_folder, planted, cache_dir, tmp_path_factory):
    runs = {}
    before = (encoder_folder / "model.safetensors").read_bytes()
    for name, merge in (("adapter", False), ("merged", True)):
        folder = tmp_path_factory.mktemp("lora") / name
        finetune(
            encoder_folder, planted, folder, cache_dir=str(cache_dir), method="lora", augmentation="light",
            merge=merge, num_train_epochs=4, learning_rate=1e-2, dataloader_num_workers=0, use_cpu=True,
        )  # fmt: skip
        runs[name] = folder
    assert (encoder_folder / "model.safetensors").read_bytes() == before
    return runs


def test_adapter_folder_is_small_and_holds_the_head(adapter_run, encoder_folder):
    folder = adapter_run["adapter"]
    tensors = load_file(folder / "adapter_model.safetensors")
    assert not (folder / "model.safetensors").exists()
    names = [name.removeprefix("base_model.model.") for name in tensors]
    assert {"classifier.weight", "classifier.bias", "fc_norm.weight", "fc_norm.bias"} <= set(names)
    assert sum("lora_A" in name for name in names) == sum("lora_B" in name for name in names) == 3 * 2
    assert all("query" in name or "value" in name for name in names if "lora" in name)
    assert len(names) == 12 + 4
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (16, 16)
    assert json.loads((folder / "config.json").read_text())["id2label"] == {"0": "amd", "1": "healthy"}


def test_adapter_learns(adapter_run):
    assert json.loads((adapter_run["adapter"] / "metrics.json").read_text())["auroc"] > 0.9


@pytest.mark.parametrize("name", ["adapter", "merged"])
def test_loaded_folder_gives_the_stored_predictions(adapter_run, planted, name):
    import pandas as pd

    folder = adapter_run[name]
    table = pd.read_csv(folder / "predictions.csv")
    files = [str(planted / file) for file in table["id"]]
    found = probabilities(load_classifier(str(folder)), load_processor(str(folder)), files)
    assert found == pytest.approx(table[["prob/amd", "prob/healthy"]].to_numpy(), abs=1e-5)


def test_merged_folder_is_a_plain_one(adapter_run):
    merged, adapter = adapter_run["merged"], adapter_run["adapter"]
    assert not (merged / "adapter_config.json").exists()
    model = AutoModelForImageClassification.from_pretrained(merged)
    assert isinstance(model, RetFoundForImageClassification)
    assert not [name for name in model.state_dict() if "lora" in name]
    assert AutoImageProcessor.from_pretrained(merged).crop_size["height"] == 32
    metrics = [json.loads((folder / "metrics.json").read_text()) for folder in (merged, adapter)]
    assert metrics[0] == pytest.approx(metrics[1], abs=1e-5)


def test_encoder_of_an_adapter_has_it_merged_in(adapter_run, encoder_folder):
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        adapted, merged, base = (
            load_encoder(str(folder))(pixels).pooler_output
            for folder in (adapter_run["adapter"], adapter_run["merged"], encoder_folder)
        )
    assert torch.allclose(adapted, merged, atol=1e-5)
    assert not torch.allclose(adapted, base, atol=1e-3)


def test_an_adapter_finds_its_base_from_any_folder(adapter_run, job, encoder_folder, run, monkeypatch, tmp_path):
    monkeypatch.chdir(encoder_folder.parent)
    done = run(model_name_or_path=encoder_folder.name, **{**LORA, "num_train_epochs": 1})
    monkeypatch.chdir(tmp_path)
    assert load_classifier(str(done.folder)).config.num_labels == 2


def test_an_adapter_without_its_base_is_refused(adapter_run, tmp_path):
    import shutil

    folder = tmp_path / "moved"
    shutil.copytree(adapter_run["adapter"], folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(tmp_path / "gone")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(BadModelError) as error:
        load_classifier(str(folder))
    assert error.value.model == str(tmp_path / "gone")


def test_base_weights_do_not_change(job, encoder_folder):
    made = job(**LORA)
    before = {name: tensor.clone() for name, tensor in made.classifier.model.state_dict().items()}
    model, _ = made.train()
    after = {name.replace("base_layer.", ""): tensor for name, tensor in model.base_model.model.state_dict().items()}
    for name, tensor in before.items():
        if name.startswith("vit."):
            assert torch.equal(after[name], tensor), name
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name or "modules_to_save" in name for name in trained)


@pytest.mark.parametrize("kind", ["vit", "dinov2", "dinov3_vit", "vit_mae"])
def test_stock_models_take_the_default_targets(stock_folder, kind):
    model = add_lora(build_classifier(str(stock_folder(kind)), None, LABELS), targets=["query", "value"])
    adapted = {name.split(".lora_A")[0].rsplit(".", 1)[-1] for name in model.state_dict() if "lora_A" in name}
    # Which names a stock model bears depends on the version of transformers.
    ours = kind in ("vit", "vit_mae")
    assert adapted in ([{"query", "value"}] if ours else [{"query", "value"}, {"q_proj", "v_proj"}])
    assert sum("lora_A" in name for name in model.state_dict()) == 6


@pytest.mark.parametrize("kind", ["vit", "dinov2", "dinov3_vit"])
def test_stock_models_through_the_whole_run(run, stock_folder, planted, kind):
    done = run(model_name_or_path=str(stock_folder(kind)), **LORA)
    assert done.metrics["auroc"] > 0.9
    files = [str(planted / file) for file in done.predictions["id"]]
    found = probabilities(load_classifier(str(done.folder)), load_processor(str(done.folder)), files)
    assert found == pytest.approx(done.predictions[["prob/amd", "prob/healthy"]].to_numpy(), abs=1e-5)


def test_other_targets(encoder_folder):
    model = add_lora(build_classifier(str(encoder_folder), None, LABELS), rank=4, targets=["key", "dense"])
    adapted = [name for name in model.state_dict() if "lora_A" in name]
    assert len(adapted) == 3 * (1 + 3)
    assert {model.state_dict()[name].shape[0] for name in adapted} == {4}


def test_unknown_targets_are_refused(encoder_folder):
    model = build_classifier(str(encoder_folder), None, LABELS)
    with pytest.raises(BadArgumentError) as error:
        add_lora(model, targets=["qkv"])
    assert error.value.field == "lora_targets" and {"query", "value"} <= set(error.value.accepted)
