"""SimCLR and SwAV on a ResNet, as published: start, recipe, result, and the commands that take it."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModel, ResNetModel

from retfound_hf.errors import RetFoundError
from retfound_hf.finetuning.classifier import build_classifier
from retfound_hf.models.loading import load_encoder, load_processor
from retfound_hf.pretraining.arguments import ModelArguments
from retfound_hf.pretraining.objectives.base import build_encoder
from retfound_hf.pretraining.objectives.swav import SwAV
from retfound_hf.pretraining.pretrain import run as pretrain

LABELS = {"num_labels": 2, "id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "b": 1}, "problem_type": None}


@pytest.fixture
def run(tiny_arguments, small_options, resnet_folder, tmp_path):
    def go(name: str, folder: str = "run", **options) -> Path:
        options = {
            "objective": name, "model_name_or_path": str(resnet_folder), "image_size": 32, "modality": "cfp",
            "per_device_train_batch_size": 48, **small_options[name], **options,
        }  # fmt: skip
        return pretrain(tiny_arguments(tmp_path / folder, **options))

    return go


@pytest.mark.parametrize("name", ["simclr", "swav"])
def test_the_result_is_a_stock_resnet_with_our_processor(run, resnet_folder, name):
    folder = run(name)
    model, info = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert type(model) is ResNetModel and not info["missing_keys"] and not info["unexpected_keys"]
    assert model.config.modality == "cfp" and model.config.image_size == 32
    before, after = (load_file(path / "model.safetensors") for path in (resnet_folder, folder))
    assert before.keys() == after.keys()
    assert not [key for key, value in before.items() if torch.equal(value, after[key])]
    assert AutoImageProcessor.from_pretrained(folder).crop_size.height == load_processor(str(folder)).crop_size.height
    assert load_processor(str(folder)).crop_size.height == 32
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model.eval()(pixels).pooler_output.flatten(1)
        assert torch.allclose(load_encoder(str(folder))(pixels).patch_mean, expected, atol=1e-5)
        classifier = build_classifier(str(folder), None, LABELS).eval()
        assert torch.allclose(classifier.vit(pixels).patch_mean, expected, atol=1e-5)


def test_a_resumed_run_is_the_uninterrupted_one_to_the_last_bit(run, tmp_path):
    whole = run("simclr", save_steps=3, save_total_limit=9)
    shutil.copytree(whole / "checkpoint-3", tmp_path / "stopped" / "checkpoint-3")
    resumed = run("simclr", "stopped", save_steps=3, save_total_limit=9, resume_from_checkpoint="latest")
    for name in ("model.safetensors", "objective.safetensors", "optimizer.bin"):
        one, other = (folder / "checkpoint-6" / name for folder in (whole, resumed))
        assert one.read_bytes() == other.read_bytes(), name


def test_the_recipe_is_the_published_one(resnet_folder, make_loop):
    options = {"model_name_or_path": str(resnet_folder), "image_size": 32, "base_learning_rate": None}
    loop, _ = make_loop(objective="simclr", warmup_steps=None, **options)
    loop.monitor.log.close()
    args = loop.args
    assert (args.optim, args.weight_decay, args.base_learning_rate) == ("lars", 1e-6, 0.3)
    assert args.peak_learning_rate(4096) == pytest.approx(4.8)
    network = build_encoder(ModelArguments(model_name_or_path=str(resnet_folder), objective="swav"))
    objective = SwAV(network, 256)
    assert objective.recipe.optim == "lars"
    assert [view.size for view in objective.draw.views] == [224] * 2 + [96] * 6


def test_the_preset_is_resnet_50():
    network = build_encoder(ModelArguments(config_name="resnet-50", objective="simclr", modality="oct"))
    assert type(network) is ResNetModel and network.training
    assert sum(parameter.numel() for parameter in network.parameters()) == 23_508_032  # torchvision's, without its fc
    assert (network.config.image_size, network.config.modality) == (224, "oct")


def test_what_a_resnet_does_not_have_is_refused(run):
    with pytest.raises(RetFoundError, match="--gradient_checkpointing: a resnet model does not have it"):
        run("simclr", gradient_checkpointing=True)
    with pytest.raises(RetFoundError, match="--torch_compile: a resnet model has no transformer blocks; leave it out"):
        run("simclr", torch_compile=True)
    with pytest.raises(RetFoundError, match="is a resnet model; masked autoencoding goes on from"):
        run("simclr", objective="mae", image_size=None)
