"""What a run leaves: one folder, and one per checkpoint, for every class and command that comes after."""

import json
import os
import stat
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModel, AutoModelForPreTraining, ViTMAEForPreTraining

from retfound_hf import RetFoundForPreTraining, RetFoundModel
from retfound_hf.finetuning.finetune import finetune
from retfound_hf.pretraining.arguments import PretrainingArguments
from retfound_hf.pretraining.pretrain import pretrain

FOLDERS = ["", "checkpoint-3"]


@pytest.fixture(scope="module")
def result(shards, model_folder, cache_dir, tmp_path_factory) -> Path:
    """A run of six steps from the small folder, with a checkpoint in the middle."""
    from retfound_hf.pretraining.arguments import DataArguments, ModelArguments

    return pretrain(
        ModelArguments(model_name_or_path=str(model_folder)),
        DataArguments(train_data=[str(shards)], cache_dir=str(cache_dir), preview_steps=0),
        PretrainingArguments(
            output_dir=str(tmp_path_factory.mktemp("runs") / "my-retfound"), max_steps=6, save_steps=3,
            per_device_train_batch_size=8, learning_rate=1e-3, dataloader_num_workers=0, logging_steps=2,
        ),
    )  # fmt: skip


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 3, 32, 32, generator=generator)


@pytest.mark.parametrize("name", FOLDERS)
@torch.no_grad()
def test_every_class_reads_the_same_network(result, pixels, name):
    folder = result / name
    noise = torch.rand(3, 16, generator=torch.Generator().manual_seed(1))
    autoencoder = AutoModelForPreTraining.from_pretrained(folder).eval()
    stock, loading = ViTMAEForPreTraining.from_pretrained(folder, output_loading_info=True)
    assert isinstance(autoencoder, RetFoundForPreTraining)
    assert not loading["missing_keys"]
    losses = [model(pixels, noise=noise).loss for model in (autoencoder, stock.eval())]
    assert losses[0].item() == pytest.approx(losses[1].item(), abs=1e-6)

    encoder = AutoModel.from_pretrained(folder).eval()
    assert isinstance(encoder, RetFoundModel)
    stock.vit.embeddings.config.mask_ratio = 0.0
    in_order = torch.arange(16.0).expand(3, 16)
    expected = stock.vit(pixels, noise=in_order).last_hidden_state
    assert torch.allclose(encoder(pixels).last_hidden_state, expected, atol=1e-5)


def test_the_result_is_the_last_checkpoint_and_has_learned(result, model_folder):
    last, middle = ((result / name / "model.safetensors").read_bytes() for name in ("checkpoint-6", "checkpoint-3"))
    assert (result / "model.safetensors").read_bytes() == last != middle
    first, trained = load_file(model_folder / "model.safetensors"), load_file(result / "model.safetensors")
    assert first.keys() == trained.keys()
    fixed = {name for name, value in first.items() if torch.equal(value, trained[name])}
    assert fixed == {"vit.embeddings.position_embeddings", "decoder.decoder_pos_embed"}


@pytest.mark.parametrize("name", FOLDERS)
def test_the_processor_is_that_of_the_network(result, name, make_picture):
    processor = AutoImageProcessor.from_pretrained(result / name)
    assert processor(make_picture(0), return_tensors="pt")["pixel_values"].shape == (1, 3, 32, 32)


def test_card_and_record_say_what_was_done(result, model_folder):
    card = (result / "README.md").read_text(encoding="utf-8")
    assert not [mark for mark in ("{{", "}}", "TODO", "[More Information Needed]", "None") if mark in card]
    assert "my-retfound" in card
    assert "203 colour fundus photographs" in card
    assert "6 steps of 8 images; mask ratio 0.75, peak learning rate 0.001" in card
    record = json.loads((result / "run.json").read_text(encoding="utf-8"))
    assert record["command"] == "pretrain"
    assert record["arguments"]["model_name_or_path"] == str(model_folder)
    assert (record["num_images"], record["steps"], record["num_processes"]) == (203, 6, 1)
    assert record["versions"]["torch"] == metadata.version("torch")


def test_files_have_ordinary_permissions_and_nothing_else_is_left(result):
    mask = os.umask(0)
    os.umask(mask)
    for path in result.rglob("*"):
        expected = (0o777 if path.is_dir() else 0o666) & ~mask
        assert stat.S_IMODE(path.stat().st_mode) == expected, path
    assert {path.name for path in result.iterdir()} == {
        "README.md", "checkpoint-3", "checkpoint-6", "config.json", "metrics.jsonl", "model.safetensors",
        "preprocessor_config.json", "run.json",
    }  # fmt: skip


@pytest.fixture
def planted(tmp_path) -> Path:
    """Red and blue images in the official layout."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4), ("test", 6)):
        for label, colour in (("red", (190, 60, 60)), ("blue", (60, 60, 190))):
            folder = tmp_path / "planted" / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                values = generator.normal(colour, 25, (40, 40, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(values).save(folder / f"{number}.png")
    return tmp_path / "planted"


@pytest.mark.parametrize("name", FOLDERS)
def test_fine_tuning_goes_on_from_it(result, planted, tmp_path, name):
    done = finetune(
        result / name, planted, tmp_path / "classifier", cache_dir=str(tmp_path / "cache"), method="linear",
        dataloader_num_workers=0, use_cpu=True,
    )  # fmt: skip
    assert done.metrics["auroc"] > 0.95


@pytest.mark.parametrize("name", FOLDERS)
def test_pretraining_goes_on_from_it(result, tiny_arguments, tmp_path, name):
    """With a rate of nothing, the network stays; so it has been taken over whole, decoder and all."""
    folder = pretrain(
        *tiny_arguments(tmp_path / "next", model_name_or_path=str(result / name), learning_rate=1e-30, max_steps=2)
    )
    assert (folder / "model.safetensors").read_bytes() == (result / name / "model.safetensors").read_bytes()
    logged = json.loads((folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    assert 0 < logged["loss"] < 2
