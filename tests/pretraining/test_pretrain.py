"""The function and the command `pretrain`: folder, card, record, and an objective that a script brings along."""

import json
import os
import stat
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

import pytest
import torch
from small_runs import picture
from tiny import save_planted_set
from torch import nn
from transformers import AutoImageProcessor, AutoModel, AutoModelForPreTraining, ViTMAEForPreTraining

import retfound_hf as rf
from retfound_hf import RetFoundForPreTraining, RetFoundModel
from retfound_hf.errors import BadArgumentError, OutputError
from retfound_hf.options import option
from retfound_hf.pretraining import pretrain as module
from retfound_hf.pretraining.objectives import OBJECTIVES
from retfound_hf.pretraining.objectives.base import ObjectiveOptions, Recipe
from retfound_hf.pretraining.objectives.joint_embedding import JointEmbedding, View, encode
from retfound_hf.pretraining.pretrain import main, pretrain, run

FOLDERS = ["", "checkpoint-3"]


@pytest.fixture(scope="module")
def result(tiny_arguments, tmp_path_factory) -> Path:
    """A run of six steps from the small folder, with a checkpoint in the middle."""
    folder = tmp_path_factory.mktemp("runs") / "my-retfound"
    options = {"save_steps": 3, "learning_rate": 1e-3, "gradient_accumulation_steps": 2, "seed": 11}
    return run(tiny_arguments(folder, per_device_train_batch_size=4, **options)).output_dir


def test_the_front_door_is_silent_and_returns_what_it_wrote(quick_options, result, tmp_path, capsys):
    options = quick_options(tmp_path / "out", max_steps=5, save_steps=3)
    data = options.pop("train_data")[0]
    found = rf.pretrain(data, options.pop("output_dir"), **options)
    assert capsys.readouterr().out == ""
    assert found.output_dir == tmp_path / "out" and (found.steps, found.stopped_by) == (5, None)
    assert [line["step"] for line in found.metrics] == [2, 4, 5] and found.loss == found.metrics[-1]["loss"] > 0
    assert AutoModel.from_pretrained(found.output_dir).config.modality == "cfp"


def test_images_of_the_other_modality_are_told(quick_options, tmp_path, caplog):
    tiny = {"model_name_or_path": None, "config_name": "retfound-tiny", "image_size": 64, "modality": "oct"}
    pretrain(**quick_options(tmp_path / "out", max_steps=1, **tiny))
    assert "look coloured" in caplog.text and "OCT" in caplog.text


def test_a_run_that_learned_nothing_says_so(start, caplog):
    run = start(max_steps=2, learning_rate=1e-9)
    record = json.loads((run.output_dir / "run.json").read_text())
    assert not run.has_learned and run.untrained_loss == record["untrained_loss"] and record["has_learned"] is False
    assert f"{run.loss:.3f}" in caplog.text and f"{run.untrained_loss:.3f}" in caplog.text
    assert replace(run, loss=0.5 * run.untrained_loss).has_learned
    assert replace(run, untrained_loss=None).has_learned


@pytest.mark.parametrize("name", FOLDERS)
@torch.no_grad()
def test_every_class_reads_the_same_network(result, name):
    folder = result / name
    pixels, noise = torch.randn(3, 3, 32, 32), torch.rand(3, 16)
    autoencoder = AutoModelForPreTraining.from_pretrained(folder).eval()
    stock, loading = ViTMAEForPreTraining.from_pretrained(folder, output_loading_info=True)
    assert isinstance(autoencoder, RetFoundForPreTraining) and not loading["missing_keys"]
    losses = [model(pixels, noise=noise).loss for model in (autoencoder, stock.eval())]
    assert losses[0].item() == pytest.approx(losses[1].item(), abs=1e-6)
    encoder = AutoModel.from_pretrained(folder).eval()
    assert isinstance(encoder, RetFoundModel)
    stock.vit.embeddings.config.mask_ratio = 0.0
    expected = stock.vit(pixels, noise=torch.arange(16.0).expand(3, 16)).last_hidden_state
    assert torch.allclose(encoder(pixels).last_hidden_state, expected, atol=1e-5)
    processor = AutoImageProcessor.from_pretrained(folder)
    assert processor(picture(0), return_tensors="pt")["pixel_values"].shape == (1, 3, 32, 32)


def test_the_result_is_the_last_checkpoint_and_has_moved(result, model_folder):
    last, middle = (RetFoundForPreTraining.from_pretrained(result / name).state_dict() for name in ("", FOLDERS[1]))
    assert (result / "model.safetensors").read_bytes() == (result / "checkpoint-6/model.safetensors").read_bytes()
    first = RetFoundForPreTraining.from_pretrained(model_folder).state_dict()
    assert not torch.equal(last["decoder.mask_token"], middle["decoder.mask_token"])
    fixed = {name for name, value in first.items() if torch.equal(value, last[name])}
    assert fixed == {"vit.embeddings.position_embeddings", "decoder.decoder_pos_embed"}


def test_card_and_record_say_what_was_done(result, shards, model_folder):
    card = (result / "README.md").read_text(encoding="utf-8")
    assert not [mark for mark in ("{{", "}}", "{%", "TODO", "[More Information Needed]", "None") if mark in card]
    for part in (
        "my-retfound", "masked autoencoding (He et al. 2022) on 203 colour fundus photographs", f"`{shards.name}`",
        "6 steps of 8 images; mask ratio 0.75, peak learning rate 0.001", "seed 11",
        "pipeline_tag: image-feature-extraction",
    ):  # fmt: skip
        assert part in card, part
    record = json.loads((result / "run.json").read_text(encoding="utf-8"))
    assert (record["command"], record["arguments"]["model_name_or_path"]) == ("pretrain", str(model_folder))
    assert (record["num_images"], record["steps"], record["num_processes"]) == (203, 6, 1)
    assert record["versions"]["torch"] == metadata.version("torch")


def test_the_card_names_data_sets_of_the_hub(make_loop, tiny_arguments, tmp_path):
    arguments = tiny_arguments(tmp_path / "out")
    arguments.data.train_data = [*arguments.data.train_data, "org/retinas"]
    text = module.write_pretrained_card(tmp_path, "mine", arguments, make_loop()[0], 12.0).read_text(encoding="utf-8")
    assert "datasets:\n- org/retinas\n" in text and "`org/retinas`" in text


def test_files_have_ordinary_permissions_and_nothing_else_is_left(result):
    mask = os.umask(0)
    os.umask(mask)
    for path in result.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o777 if path.is_dir() else 0o666) & ~mask, path
    assert {path.name for path in result.iterdir()} == {
        "README.md", "checkpoint-3", "checkpoint-6", "config.json", "metrics.jsonl", "model.safetensors",
        "preprocessor_config.json", "run.json",
    }  # fmt: skip


@pytest.mark.parametrize("name", FOLDERS)
def test_fine_tuning_goes_on_from_it(result, tmp_path, name):
    data = save_planted_set(tmp_path / "planted", {"train": 8, "val": 4, "test": 6})
    found = rf.finetune(
        str(result / name), str(data), str(tmp_path / "classifier"), method="linear", dataloader_num_workers=0,
        use_cpu=True, disable_tqdm=True, cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip
    assert found.metrics["auroc"] > 0.95


@pytest.mark.parametrize("name", FOLDERS)
def test_pretraining_goes_on_from_it(result, start, name):
    """With a rate of nothing, the network stays; so it has been taken over whole, decoder and all."""
    found = start(model_name_or_path=str(result / name), learning_rate=1e-30, max_steps=2)
    assert (found.output_dir / "model.safetensors").read_bytes() == (result / name / "model.safetensors").read_bytes()
    assert 0 < found.loss < 2


@dataclass(kw_only=True)
class CosineOptions(ObjectiveOptions):
    margin: float = option(0.0, "similarity from which on a pair has no loss", 0, 1)


class Cosine(JointEmbedding):
    """Two views of an image are alike; in this file alone."""

    name, title, citation = "cosine", "plain cosine similarity", "Nobody 2026"
    Options = CosineOptions
    supports_accumulation = True
    recipe = Recipe(base_learning_rate=1e-3, warmup_steps=0.1, weight_decay=0.0)

    def __init__(self, model, side, options=None):
        view = View(model.config.image_size, model.config.image_size, (0.2, 1.0), (0.4, 0.4, 0.2, 0.0))
        super().__init__(model, side, (view, view), type("Published", (), {"views": "published"}))
        self.margin, self.head = options.margin, nn.Linear(self.width, 8)

    def forward(self, views):
        first, second = self.head(encode(self.model, views["large"])).chunk(2)
        alike = torch.cosine_similarity(first, second)
        return (1 - self.margin - alike).clamp(min=0).mean(), alike.new_zeros(0)


@pytest.fixture
def cosine(monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "cosine", Cosine)


def test_an_objective_from_outside_runs_through_the_command(cosine, pretrain_words, tmp_path, capsys):
    main(pretrain_words(tmp_path / "out", objective="cosine", margin=0.125, preview_steps=3, save_steps=3))
    folder = tmp_path / "out"
    assert capsys.readouterr().out.strip() == str(folder)
    assert isinstance(AutoModel.from_pretrained(folder), RetFoundModel)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "by plain cosine similarity (Nobody 2026) on" in card and "mask ratio" not in card
    arguments = json.loads((folder / "run.json").read_text(encoding="utf-8"))["arguments"]
    assert (arguments["objective"], arguments["margin"], arguments["temperature"]) == ("cosine", 0.125, None)
    assert (arguments["optim"], arguments["weight_decay"]) == ("adamw", 0.0)
    assert (
        len(list((folder / "previews").iterdir())) == 2 and (folder / "checkpoint-3/objective.safetensors").is_file()
    )
    with pytest.raises(BadArgumentError) as error:
        main(pretrain_words(tmp_path / "other", margin=0.5))
    assert error.value.field == "margin"


@pytest.mark.parametrize("absent", ["title", "citation", "recipe"])
def test_an_objective_that_no_card_could_name_is_refused_before_the_first_step(cosine, start, tmp_path, absent):
    OBJECTIVES["cosine"] = type("Nameless", (Cosine,), {absent: None})
    with pytest.raises(BadArgumentError) as error:
        start(objective="cosine")
    assert error.value.field == "objective" and absent in str(error.value) and not (tmp_path / "out").exists()


def test_a_card_that_cannot_be_written_shows_before_the_first_step(start, monkeypatch, tmp_path):
    def broken(*args, **facts):
        raise KeyError("title")

    monkeypatch.setattr(module, "write_card", broken)
    with pytest.raises(KeyError):
        start()
    assert not (tmp_path / "out" / "metrics.jsonl").exists()


def test_only_a_full_disk_is_called_one(start, monkeypatch, tmp_path):
    for problem, kind in ((OSError(28, "No space left"), OutputError), (KeyError("a bug"), KeyError)):

        def fail(*values, problem=problem, **options):
            raise problem

        with monkeypatch.context() as patch, pytest.raises(kind):
            patch.setattr(module, "move_into", fail)
            start("out", overwrite_output_dir=True)
        assert (tmp_path / "out" / "checkpoint-6").is_dir()
    start("out", resume_from_checkpoint="latest")
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_a_second_run_may_replace_the_first(start, tmp_path):
    start(preview_steps=2, save_steps=2)
    (tmp_path / "out" / "notes.txt").write_text("mine")
    start(overwrite_output_dir=True, max_steps=2)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert "notes.txt" in names and "checkpoint-2" in names and not names & {"checkpoint-4", "previews"}


def test_paths_are_taken_as_data_and_folder(quick_options, shards, tmp_path):
    options = {**quick_options(tmp_path / "out", max_steps=1), "train_data": [shards], "output_dir": tmp_path / "out"}
    assert pretrain(**options).steps == 1
