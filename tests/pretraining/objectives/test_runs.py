"""Runs with every objective that compares views: resume, precision, memory, the folder that they leave."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForImageClassification, AutoModelForPreTraining

from retfound_hf import RetFoundModel
from retfound_hf.finetuning.classifier import build_classifier
from retfound_hf.models.loading import load_encoder
from retfound_hf.pretraining.data import make_loader, step_generator
from retfound_hf.pretraining.pretrain import TITLES, pretrain

FILES = ("model.safetensors", "objective.safetensors", "training_state.json")
# An epoch has 4 steps, the first of which some parameters do not take.
QUICK = {
    "per_device_train_batch_size": 48,
    "base_learning_rate": None,
    "learning_rate": 3e-3,
    "save_total_limit": 9,
    "logging_steps": 3,
}


@pytest.fixture
def run(tiny_arguments, small_options, joint, tmp_path):
    """Runs six steps of the objective in this process."""

    def go(folder: str = "run", **options) -> Path:
        options = {"objective": joint, **QUICK, **small_options[joint], **options}
        return pretrain(tiny_arguments(tmp_path / folder, **options))

    return go


@pytest.fixture
def drive(make_loop, small_options, joint, tmp_path):
    """Takes all steps of a run, without what lies between them; returns the loop."""

    def go(folder: str, **options):
        options = {"objective": joint, **QUICK, **small_options[joint], **options}
        loop, reader = make_loop(tmp_path / folder, **options)
        batches = iter(make_loader(reader, loop.objective.draw, loop.order, loop.position, 0, pin_memory=False))
        loop.network.train()
        while not loop.order.is_finished(loop.position):
            loop.step(batches)
        loop.monitor.log.close()
        return loop

    return go


def test_a_resumed_run_is_the_uninterrupted_one_to_the_last_bit(run, tmp_path):
    whole = run(save_steps=2)
    stopped = tmp_path / "stopped"
    shutil.copytree(whole / "checkpoint-2", stopped / "checkpoint-2")
    resumed = run("stopped", save_steps=2, resume_from_checkpoint="latest")
    for step in (4, 6):
        for name in FILES:
            one, other = (folder / f"checkpoint-{step}" / name for folder in (whole, resumed))
            assert one.read_bytes() == other.read_bytes(), (step, name)
        moments = [
            torch.load(folder / f"checkpoint-{step}" / "optimizer.bin", weights_only=True)["state"]
            for folder in (whole, resumed)
        ]
        assert moments[0].keys() == moments[1].keys()
        for number, entry in moments[0].items():
            assert all(torch.equal(value, moments[1][number][name]) for name, value in entry.items())
    first, last = (load_file(whole / f"checkpoint-{step}" / "objective.safetensors") for step in (2, 6))
    assert first.keys() == last.keys() != set()
    changed = {name for name in first if not torch.equal(first[name], last[name])}
    assert changed, "state that stands still would agree in any case"


def test_the_result_is_an_encoder_folder(run, joint, shards, tmp_path):
    folder = run()
    model, info = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert isinstance(model, RetFoundModel) and not info["missing_keys"] and not info["unexpected_keys"]
    assert model.config.encoder_only and model.config.modality == "cfp"
    with pytest.raises(ValueError, match="holds an encoder without decoder"):
        AutoModelForPreTraining.from_pretrained(folder)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    labels = {"num_labels": 2, "id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "b": 1}, "problem_type": None}
    classifier = build_classifier(str(folder), None, labels).eval()
    assert isinstance(classifier, AutoModelForImageClassification._model_mapping[type(model.config)])
    expected = load_encoder(str(folder))(pixels).patch_mean
    assert torch.equal(classifier.vit(pixels).patch_mean, expected)
    record = json.loads((folder / "run.json").read_text())["arguments"]
    assert record["weight_decay"] is not None and record["warmup_steps"] == 0.2
    card = (folder / "README.md").read_text()
    assert f"by {TITLES[joint]} on" in card and "mask ratio" not in card and "None" not in card
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(0 < line["embedding_spread"] < 1.5 for line in lines)


def test_another_run_starts_from_the_result(run, tmp_path):
    """With a rate of nothing the network stays, so it has been taken over whole."""
    first = run("first")
    second = run("second", model_name_or_path=str(first), learning_rate=1e-30, teacher_momentum=None, max_steps=2)
    one, other = (load_file(folder / "model.safetensors") for folder in (first, second))
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_bfloat16_is_near_float32(drive):
    plain, half = drive("plain", learning_rate=1e-5), drive("half", learning_rate=1e-5, bf16=True)
    one, other = (loop.buffer.values()[:, 0] for loop in (plain, half))
    assert not torch.equal(one, other)
    torch.testing.assert_close(one, other, atol=0.0, rtol=0.03)


def test_checkpointed_activations_and_clipping_keep_the_steps(drive):
    plain, saving = (
        drive("plain", max_grad_norm=0.05),
        drive("saving", max_grad_norm=0.05, gradient_checkpointing=True),
    )
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


def test_it_learns_what_is_the_same_in_two_views(make_loop, drive, small_options, joint, tmp_path):
    options = {"max_steps": 150, "per_device_train_batch_size": 32, "learning_rate": 2e-3, "warmup_steps": 0.1}
    untrained, reader = make_loop(tmp_path / "untrained", objective=joint, **small_options[joint], **options)
    untrained.monitor.log.close()
    images = reader.read(range(len(reader.table)))[0]
    before = found_again(untrained.objective, images)
    trained = drive("trained", **options)
    after = found_again(trained.objective, images)
    assert after > 2 * before
    assert trained.buffer.values()[-30:, 2].mean() > 0.3  # the spread: not all at one place


@pytest.mark.slow
def test_compiled_blocks_equal_eager_ones(drive):
    """Crops of two sizes pass the same blocks."""
    plain, compiled = drive("plain", max_steps=3), drive("compiled", max_steps=3, torch_compile=True)
    torch.testing.assert_close(plain.buffer.values(), compiled.buffer.values(), atol=1e-4, rtol=1e-4)
