"""Runs with every objective that compares views, on a ViT and on a ResNet: resume, precision, the folder."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from small_runs import JOINT, SMALL, assert_same_checkpoints
from transformers import AutoImageProcessor, AutoModel, AutoModelForPreTraining, ResNetModel

from retfound_hf import RetFoundModel
from retfound_hf.errors import BadArgumentError, BadModelError
from retfound_hf.models.loading import load_encoder, load_processor
from retfound_hf.pretraining.arguments import ModelArguments
from retfound_hf.pretraining.data import step_generator
from retfound_hf.pretraining.objectives import OBJECTIVES
from retfound_hf.pretraining.objectives.base import build_encoder
from retfound_hf.pretraining.objectives.swav import SwAV

# An epoch has 4 steps, the first of which some parameters do not take.
QUICK = {"per_device_train_batch_size": 48, "base_learning_rate": None, "learning_rate": 3e-3, "logging_steps": 3}


@pytest.fixture
def options(resnet_folder):
    """Of a run with an objective; `simclr-resnet` is on a ResNet."""

    def make(name: str, **others):
        name, _, kind = name.partition("-")
        on = {"model_name_or_path": str(resnet_folder), "image_size": 32, "modality": "cfp"} if kind else {}
        return {"objective": name, **QUICK, **on, **SMALL[name], **others}

    return make


@pytest.mark.parametrize("name", [*JOINT, "simclr-resnet"])
def test_a_resumed_run_is_the_uninterrupted_one_to_the_last_bit(start, options, tmp_path, name):
    settings = options(name, save_steps=2, save_total_limit=9)
    whole = start("whole", **settings).output_dir
    shutil.copytree(whole / "checkpoint-2", tmp_path / "stopped" / "checkpoint-2")
    resumed = start("stopped", **settings, resume_from_checkpoint="latest").output_dir
    for step in ("checkpoint-4", "checkpoint-6"):
        assert_same_checkpoints(whole / step, resumed / step, "objective.safetensors", "training_state.json")
    first, last = (load_file(whole / f"checkpoint-{step}" / "objective.safetensors") for step in (2, 6))
    assert first.keys() == last.keys() != set()
    assert any(not torch.equal(first[name], last[name]) for name in first), "state that stands still agrees anyway"


def test_the_result_is_an_encoder_folder_from_which_another_run_starts(start, options, joint):
    folder = start("first", **options(joint)).output_dir
    model, info = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert isinstance(model, RetFoundModel) and not info["missing_keys"] and not info["unexpected_keys"]
    assert model.config.encoder_only and model.config.modality == "cfp"
    with pytest.raises(ValueError):
        AutoModelForPreTraining.from_pretrained(folder)
    arguments = json.loads((folder / "run.json").read_text())["arguments"]
    assert arguments["weight_decay"] is not None and arguments["warmup_steps"] == 0.2
    card = (folder / "README.md").read_text()
    assert f"by {OBJECTIVES[joint].title} (" in card and "mask ratio" not in card and "None" not in card
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(0 < line["embedding_spread"] < 1.5 for line in lines)
    # With a rate of nothing the network stays, so it has been taken over whole.
    rest = {"learning_rate": 1e-30, "teacher_momentum": None, "max_steps": 2}
    second = start("second", **options(joint, model_name_or_path=str(folder), **rest)).output_dir
    assert (second / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("name", ["simclr-resnet", "swav-resnet"])
def test_the_result_on_a_resnet_is_a_stock_resnet_with_our_processor(start, options, resnet_folder, name):
    folder = start(**options(name, learning_rate=None, base_learning_rate=0.03)).output_dir
    model, info = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert type(model) is ResNetModel and not info["missing_keys"] and not info["unexpected_keys"]
    assert (model.config.modality, model.config.image_size) == ("cfp", 32)
    before, after = (load_file(path / "model.safetensors") for path in (resnet_folder, folder))
    assert before.keys() == after.keys()
    assert not [key for key, value in before.items() if torch.equal(value, after[key])]
    assert AutoImageProcessor.from_pretrained(folder).size.height == 32
    assert load_processor(str(folder)).size.height == 32
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model.eval()(pixels).pooler_output.flatten(1)
        assert torch.allclose(load_encoder(str(folder))(pixels).patch_mean, expected, atol=1e-5)


def test_the_recipe_on_a_resnet_is_the_published_one(resnet_folder, make_loop, options):
    args = make_loop(**options("simclr-resnet", learning_rate=None, warmup_steps=None))[0].args
    assert (args.optim, args.weight_decay, args.base_learning_rate) == ("lars", 1e-6, 0.3)
    assert args.peak_learning_rate(4096) == pytest.approx(4.8)
    objective = SwAV(build_encoder(ModelArguments(model_name_or_path=str(resnet_folder))), 256)
    assert objective.recipe.optim == "lars"
    assert [view.size for view in objective.draw.views] == [224] * 2 + [96] * 6


def test_what_a_resnet_does_not_have_is_refused(start, options):
    for field in ("gradient_checkpointing", "torch_compile"):
        with pytest.raises(BadArgumentError) as error:
            start(**options("simclr-resnet", **{field: True}))
        assert error.value.field == field
    with pytest.raises(BadModelError) as error:
        start(**options("simclr-resnet", objective="mae", image_size=None))
    assert error.value.model.endswith("resnet")


def test_bfloat16_is_near_float32_and_memory_is_saved_without_a_change(drive, options, joint, tmp_path):
    plain = drive(**options(joint, learning_rate=1e-5, max_grad_norm=0.05))
    half = drive(**options(joint, learning_rate=1e-5, bf16=True, max_grad_norm=0.05))
    one, other = (loop.buffer.values()[:, 0] for loop in (plain, half))
    assert not torch.equal(one, other)
    torch.testing.assert_close(one, other, atol=0.0, rtol=0.03)
    saving = drive(**options(joint, learning_rate=1e-5, gradient_checkpointing=True, max_grad_norm=0.05))
    torch.testing.assert_close(plain.buffer.values(), saving.buffer.values(), atol=1e-5, rtol=1e-5)
    assert plain.buffer.values()[:, 1].min() > 0.05  # so that clipping did something


def found_again(objective, images: torch.Tensor) -> float:
    """Share of images whose second view is nearer to their first than the second views of all others."""
    views = objective.views(images, objective.draw(len(images), step_generator(0, 2**20)))["large"]
    with torch.no_grad():
        features = objective.encoder.eval()(views).pooler_output
    objective.encoder.train()
    first, second = torch.nn.functional.normalize(features - features.mean(dim=0), dim=1).chunk(2)
    return ((first @ second.T).argmax(dim=1) == torch.arange(len(images))).float().mean().item()


def test_it_learns_what_is_the_same_in_two_views(make_loop, drive, options, joint, tmp_path):
    settings = {"per_device_train_batch_size": 32, "learning_rate": 2e-3, "warmup_steps": 0.1, "max_steps": 150}
    untrained, reader = make_loop(tmp_path / "untrained", **options(joint, **settings))
    images = reader.read(range(len(reader.table)))[0]
    before = found_again(untrained.objective, images)
    trained = drive(**options(joint, **settings))
    assert found_again(trained.objective, images) > 2 * before
    assert trained.buffer.values()[-30:, 2].mean() > 0.3  # the spread: not all at one place


@pytest.mark.slow
def test_compiled_blocks_equal_eager_ones(drive, options, joint):
    """Crops of two sizes pass the same blocks."""
    plain, compiled = (drive(**options(joint, max_steps=3, torch_compile=on)) for on in (False, True))
    torch.testing.assert_close(plain.buffer.values(), compiled.buffer.values(), atol=1e-4, rtol=1e-4)


def test_the_presets_are_the_published_encoders():
    network = build_encoder(ModelArguments(config_name="resnet-50", modality="oct"))
    assert type(network) is ResNetModel and network.training
    assert sum(parameter.numel() for parameter in network.parameters()) == 23_508_032  # torchvision's, without its fc
    assert (network.config.image_size, network.config.modality) == (224, "oct")
    model = build_encoder(ModelArguments(config_name="retfound-tiny", image_size=96, modality="cfp"))
    assert (model.config.image_size, model.config.modality) == (96, "cfp")
    assert model.training and model.embeddings.position_embeddings.abs().sum() > 0


def test_the_documented_name_is_the_key():
    assert {name: kind.name for name, kind in OBJECTIVES.items()} == {name: name for name in OBJECTIVES}
    assert list(OBJECTIVES) == ["mae", "simclr", "swav", "dino", "moco_v3"]
    assert all(isinstance(kind.title, str) and kind.citation[-4:].isdigit() for kind in OBJECTIVES.values())
