"""Methods: LoRA beside a base that stays as it is, scikit-learn's head on the same features, a method of one's own."""

import json
import subprocess
import sys
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import AutoModelForImageClassification

from retfound_hf import RetFoundForImageClassification
from retfound_hf.cli import command
from retfound_hf.errors import BadArgumentError, BadModelError
from retfound_hf.finetuning.finetune import finetune, main
from retfound_hf.finetuning.methods import METHODS, Full, Method, Trained, add_lora, build_classifier
from retfound_hf.inference.predict import head_inputs, load_classifier, to_scores
from retfound_hf.models.loading import load_encoder
from retfound_hf.options import run_command

LINEAR = {"method": "linear", "drop_path": 0.2}


LORA = {"method": "lora", "learning_rate": 1e-2, "num_train_epochs": 4}
LABELS = {"num_labels": 2, "id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "b": 1}, "problem_type": None}


def features_and_logits(made):
    history, processor = made.train().history, made.classifier.processor
    features = {name: head_inputs(made.classifier.model, one.images, processor) for name, one in made.splits.items()}
    return features, history, made.classifier.logits(made.splits["test"].images)


@pytest.mark.parametrize("columns", [None, ["red", "bright"]])
def test_linear_equals_scikit_learn_at_the_chosen_strength(job, table_set, columns):
    """One fit, or one for each of several findings; of equally good strengths any may have been chosen."""
    made = job(**LINEAR, **({"data": str(table_set), "label_columns": columns} if columns else {}))
    features, history, logits = features_and_logits(made)
    found = to_scores(logits, made.classifier.problem_type)
    targets = made.splits["train"].targets
    best = max(entry["val_score"] for entry in history)
    distances = []
    for strength in (entry["strength"] for entry in history if entry["val_score"] >= best - 1e-3):
        fit = make_pipeline(StandardScaler(), LogisticRegression(C=1 / strength, tol=1e-8, max_iter=10000))
        each = [
            fit.fit(features["train"], one).predict_proba(features["test"])[:, 1]
            for one in targets.reshape(len(targets), -1).T
        ]
        distances.append(np.abs(np.stack(each, axis=1) - found[:, -len(each) :]).max())
    assert min(distances) < 1e-4


def test_regression_equals_ridge(job, table_set):
    made = job(data=str(table_set), label_columns=["level"], problem_type="regression", **LINEAR)
    features, history, logits = features_and_logits(made)
    targets = made.splits["train"].targets
    best = max(history, key=lambda entry: entry["val_score"])["strength"]
    ridge = make_pipeline(StandardScaler(), Ridge(alpha=best)).fit(features["train"].astype(float), targets)
    assert logits[:, 0] == pytest.approx(ridge.predict(features["test"].astype(float)), abs=1e-3)
    test = made.splits["test"].targets
    assert np.abs(logits[:, 0] - test).mean() < 0.8 * np.abs(targets.mean() - test).mean()


def test_encoder_stays_as_it_is_and_the_folder_is_an_ordinary_one(run, encoder_folder, planted):
    from transformers import pipeline

    done = run(**LINEAR)
    assert done.metrics["auroc"] > 0.9
    stored, own = (load_file(folder / "model.safetensors") for folder in (encoder_folder, done.folder))
    encoder = [name for name in own if name.startswith("vit.")]
    assert len(encoder) > 50
    assert all(torch.equal(own[name], stored[name]) for name in encoder)
    assert [set(entry) for entry in done.history] == [{"strength", "val_score"}] * len(done.history)
    classify = pipeline("image-classification", model=str(done.folder))
    row = done.predictions.iloc[0]
    found = {entry["label"]: entry["score"] for entry in classify(str(planted / row["id"]))}
    assert found["amd"] == pytest.approx(row["prob/amd"], abs=1e-5)


def test_the_same_whatever_the_seed(job):
    states = []
    for seed in (0, 1):
        made = job(seed=seed, **LINEAR)
        made.train()
        states.append(made.classifier.model.classifier.weight.detach().clone())
    assert torch.allclose(*states, atol=1e-5)


def test_class_weights_weigh_the_fit(job, tmp_path, planted):
    import shutil

    data = tmp_path / "unbalanced"
    shutil.copytree(planted, data)
    for path in sorted((data / "train" / "amd").glob("*.png"))[6:]:
        path.unlink()
    plain, balanced = job(data=str(data), **LINEAR), job(data=str(data), class_weights="balanced", **LINEAR)
    weights = balanced.method.loss_options(balanced.classifier, balanced.splits["train"])["class_weights"]
    assert weights == pytest.approx([30 / 12, 30 / 48])
    scores = []
    for made in (plain, balanced):
        made.train()
        logits = made.classifier.logits(made.splits["test"].images)
        scores.append(to_scores(logits, "single_label_classification")[:, 0].mean())
    assert scores[1] > scores[0]


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


@pytest.mark.parametrize("name", ["adapter", "merged"])
def test_loaded_folder_gives_the_stored_predictions(adapter_run, planted, name):
    table = pd.read_csv(adapter_run[name] / "predictions.csv")
    found = load_classifier(adapter_run[name]).predict([planted / file for file in table["id"]])
    stored = table[["prob/amd", "prob/healthy"]].to_numpy()
    assert found.scores == pytest.approx(stored, abs=1e-5)
    assert (stored.argmax(1) == (table["label"] == "healthy")).mean() > 0.8


def test_merged_folder_is_a_plain_one(adapter_run):
    merged, adapter = adapter_run["merged"], adapter_run["adapter"]
    assert not (merged / "adapter_config.json").exists()
    model = AutoModelForImageClassification.from_pretrained(merged)
    assert isinstance(model, RetFoundForImageClassification)
    assert not [name for name in model.state_dict() if "lora" in name]
    metrics = [json.loads((folder / "metrics.json").read_text()) for folder in (merged, adapter)]
    assert metrics[0] == pytest.approx(metrics[1], abs=1e-5)
    cards = [(folder / "README.md").read_text() for folder in (merged, adapter)]
    assert ["library_name: peft" in card for card in cards] == [False, True]


def test_encoder_of_an_adapter_has_it_merged_in(adapter_run, encoder_folder):
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        adapted, merged, base = (
            load_encoder(str(folder))(pixels).pooler_output
            for folder in (adapter_run["adapter"], adapter_run["merged"], encoder_folder)
        )
    assert torch.allclose(adapted, merged, atol=1e-5)
    assert not torch.allclose(adapted, base, atol=1e-3)


def test_an_adapter_finds_its_base_from_any_folder(encoder_folder, run, monkeypatch, tmp_path):
    monkeypatch.chdir(encoder_folder.parent)
    done = run(model_name_or_path=encoder_folder.name, **{**LORA, "num_train_epochs": 1})
    monkeypatch.chdir(tmp_path)
    assert load_classifier(done.folder).class_names == ("amd", "healthy")


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
    made = job(**{**LORA, "num_train_epochs": 1})
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
    # The names of a stock model depend on the version of transformers.
    ours = kind in ("vit", "vit_mae")
    assert adapted in ([{"query", "value"}] if ours else [{"query", "value"}, {"q_proj", "v_proj"}])
    assert sum("lora_A" in name for name in model.state_dict()) == 6


@pytest.mark.parametrize(("kind", "options"), [("vit", LORA), ("dinov2", LINEAR)])
def test_stock_models_through_the_whole_run(run, stock_folder, planted, kind, options):
    done = run(model_name_or_path=str(stock_folder(kind)), **options)
    assert done.metrics["auroc"] > 0.9
    found = load_classifier(done.folder).predict([planted / file for file in done.predictions["id"]])
    assert found.scores == pytest.approx(done.predictions[["prob/amd", "prob/healthy"]].to_numpy(), abs=1e-5)


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


@dataclass
class BiasOptions:
    bias_rate: float = field(default=1e-2, metadata={"help": "bias: learning rate"})


class BiasOnly(Full):
    """A part of the network by Trainer, with an option of its own."""

    name, title = "bias", "biases alone"
    options = BiasOptions
    drop_path, layer_decay = 0.0, None

    def adapt(self, model):
        self.args.training.learning_rate = self.args.bias_rate
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.endswith("bias") or name.startswith("classifier."))
        return model


class Nearest(Method):
    """No Trainer at all: the head is the difference from the class means."""

    name, title, frozen_encoder = "nearest", "nearest class mean", True

    def train(self, classifier, train, validation, target_scale=None, checkpoint=None, features=None):
        known = features or {"train": head_inputs(classifier.model, train.images, classifier.processor)}
        means = np.stack([known["train"][train.targets == index].mean(axis=0) for index in range(2)])
        with torch.no_grad():
            classifier.model.classifier.weight.copy_(torch.from_numpy(means))
            classifier.model.classifier.bias.copy_(torch.from_numpy(-(means**2).sum(axis=1) / 2))
        return Trained(classifier.model, [{"classes": 2}])


@pytest.fixture
def own_methods(monkeypatch):
    for method in (BiasOnly, Nearest):
        monkeypatch.setitem(METHODS, method.name, method)


@pytest.mark.parametrize(("name", "options"), [("bias", ["--bias_rate", "3e-2"]), ("nearest", [])])
def test_a_method_of_ones_own_runs_through_the_command(
    own_methods, encoder_folder, planted, cache_dir, tmp_path, name, options
):
    words = ["--model_name_or_path", encoder_folder, "--data", planted, "--cache_dir", cache_dir, "--method", name,
             "--output_dir", tmp_path / "out", "--num_train_epochs", "2", "--use_cpu", "--dataloader_num_workers", "0",
             "--confidence_intervals", "--resamples", "100"]  # fmt: skip
    assert run_command(command("finetune"), [*map(str, words), *options]) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["loss_ci95"][0] <= metrics["loss"] <= metrics["loss_ci95"][1]
    assert METHODS[name].title in (tmp_path / "out" / "README.md").read_text()
    stored, own = (load_file(folder / "model.safetensors") for folder in (encoder_folder, tmp_path / "out"))
    changed = {key for key in own if key.startswith("vit.") and not torch.equal(own[key], stored[key])}
    assert bool(changed) == (name == "bias") and all(key.endswith("bias") for key in changed)
    assert load_classifier(tmp_path / "out").predict([planted / "test/amd/p032L.png"]).scores.shape == (1, 2)


def test_help_lists_the_methods_and_their_options(own_methods, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for words in (
        "{full,lora,linear,bias,nearest}",
        "--layer_decay",
        "default: 0.65, for random weights 1",
        "--lora_rank",
        "--bias_rate",
    ):
        assert words in text


STUDY = """
import sys
from retfound_hf import METHODS
from retfound_hf.cli import main
from retfound_hf.finetuning.methods import Linear

class Copy(Linear):
    name, title = "copy", "copy of the linear head"

METHODS["copy"] = Copy
if __name__ == "__main__":
    sys.exit(main(["study", *sys.argv[1:]]))
"""


@pytest.mark.slow
def test_a_method_of_ones_own_runs_through_a_study(encoder_folder, planted, cache_dir, tmp_path):
    (tmp_path / "own.py").write_text(STUDY)
    study = {
        "models": {"Tiny": str(encoder_folder)}, "methods": ["linear", "copy"], "data": {"Planted": str(planted)},
        "seeds": [0], "finetune": {"cache_dir": str(cache_dir), "dataloader_num_workers": 0},
        "reporting": {"resamples": 100},
    }  # fmt: skip
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    words = [sys.executable, tmp_path / "own.py", tmp_path / "study.yaml", "--output_dir", tmp_path / "out"]
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    table = pd.read_csv(tmp_path / "out" / "results.csv")
    assert set(table["method"]) == {"linear", "copy"}
    values = [table[table["method"] == name]["value"].to_numpy() for name in ("linear", "copy")]
    assert np.array_equal(*values, equal_nan=True)
