"""Layer-wise rates against the official rule, the schedule per step, the choice of the best epoch, balanced draws."""

import json
import math
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageClassification, EvalPrediction, TrainerCallback, get_scheduler

from retfound_hf.errors import BadArgumentError
from retfound_hf.evaluation.report import compute_metrics
from retfound_hf.finetuning.arguments import FinetuneTrainingArguments
from retfound_hf.finetuning.methods import METHODS, build_classifier
from retfound_hf.finetuning.trainer import BalancedSampler, layer_decay_groups, selection_metrics
from retfound_hf.inference.predict import Classifier, to_scores
from retfound_hf.vocabulary import MULTI_LABEL, REGRESSION, SINGLE_LABEL

RATE, DECAY, WEIGHT_DECAY = 1e-3, 0.65, 0.05
LABELS = {"num_labels": 2, "id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "b": 1}, "problem_type": None}
# Start of a name in transformers -> name of the same part in timm, whose names the official rule reads.
TIMM_STARTS = {
    "embeddings.cls_token": "cls_token",
    "embeddings.mask_token": "patch_embed.mask_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.": "patch_embed.",
    "embeddings.register_tokens": "patch_embed.register_tokens",  # counted with the embeddings here
    "encoder.layer.": "blocks.",
    "model.layer.": "blocks.",
    "layers.": "blocks.",
}


def official_layer(timm_name: str, num_layers: int) -> int:
    if timm_name in ("cls_token", "pos_embed") or timm_name.startswith("patch_embed"):
        return 0
    if timm_name.startswith("blocks"):
        return int(timm_name.split(".")[1]) + 1
    return num_layers


def timm_name(name: str, prefix: str) -> str:
    inner = name.removeprefix(f"{prefix}.")
    for start, timm_start in TIMM_STARTS.items():
        if name != inner and inner.startswith(start):
            return timm_start + inner.removeprefix(start)
    return inner


def official_rates(model: torch.nn.Module, prefix: str) -> dict[str, tuple[float, float]]:
    """name -> (learning rate, weight decay): the rule of MAE's `param_groups_lrd`, parameter by parameter."""
    num_layers = model.config.num_hidden_layers + 1
    scales = [DECAY ** (num_layers - layer) for layer in range(num_layers + 1)]
    rates = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            other = timm_name(name, prefix)
            plain = parameter.ndim == 1 or other in (
                "pos_embed",
                "cls_token",
                "patch_embed.mask_token",
                "patch_embed.register_tokens",
            )
            rates[name] = (RATE * scales[official_layer(other, num_layers)], 0.0 if plain else WEIGHT_DECAY)
    return rates


@pytest.fixture(params=["retfound", "vit_mae", "vit", "dinov2", "dinov3_vit"])
def classifier(request, encoder_folder, stock_folder):
    folder = encoder_folder if request.param == "retfound" else stock_folder(request.param)
    return build_classifier(str(folder), None, LABELS)


def test_groups_equal_the_official_rule(classifier):
    groups = layer_decay_groups(classifier, RATE, WEIGHT_DECAY, DECAY)
    names = {id(parameter): name for name, parameter in classifier.named_parameters()}
    prefix = "vit.encoder" if classifier.config.model_type == "retfound_stock" else "vit"
    found = {names[id(p)]: (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    expected = official_rates(classifier, prefix)
    assert found.keys() == expected.keys()
    for name, (rate, weight_decay) in expected.items():
        assert found[name] == (pytest.approx(rate, rel=1e-12), weight_decay), name


def test_what_is_frozen_is_left_out(encoder_folder):
    model = build_classifier(str(encoder_folder), None, LABELS)
    model.vit.encoder.requires_grad_(False)
    groups = layer_decay_groups(model, RATE, WEIGHT_DECAY, DECAY)
    # The head keeps its distance from the embeddings, however many of the blocks in between are trained.
    assert {group["layer"] for group in groups} == {0, 4}
    assert min(group["lr"] for group in groups) == pytest.approx(RATE * 0.65**4)


def test_learning_rate_follows_the_batch(arguments):
    def resolved(gpus=1, **options):
        args = arguments(**{"learning_rate": None, **options})
        args.training._n_gpu = gpus
        args.resolve_rates(METHODS[args.method].base_learning_rate)
        return args.training.learning_rate

    assert resolved() == pytest.approx(3.125e-4)  # 16 x 5e-3 / 256
    assert resolved(gradient_accumulation_steps=2, per_device_train_batch_size=8) == pytest.approx(3.125e-4)
    assert resolved(method="lora", per_device_train_batch_size=64) == pytest.approx(5e-3)
    assert resolved(base_learning_rate=1e-3, per_device_train_batch_size=256) == pytest.approx(1e-3)
    assert resolved(learning_rate=7e-4) == 7e-4
    assert resolved(gpus=2) == pytest.approx(2 * 3.125e-4)


def test_layer_decay_follows_what_was_learned(arguments, encoder_folder, tmp_path):
    def resolved(**options):
        args = arguments(**options)
        args.resolve_rates(5e-3)
        return args.layer_decay

    assert resolved() == 0.65 and resolved(config_name="retfound-tiny") == 1
    assert resolved(layer_decay=0.8) == resolved(layer_decay=0.8, config_name="retfound-tiny") == 0.8
    for learned, decay in ((True, 0.65), (False, 1)):
        folder = shutil.copytree(encoder_folder, tmp_path / f"learned-{learned}")
        (folder / "run.json").write_text(json.dumps({"command": "pretrain", "has_learned": learned}))
        assert resolved(model_name_or_path=str(folder)) == decay


@pytest.mark.parametrize("kind", ["linear", "cosine", "polynomial", "constant_with_warmup", "cosine_with_min_lr"])
def test_other_schedules_take_no_option_of_the_default_one(tmp_path, kind):
    args = FinetuneTrainingArguments(output_dir=str(tmp_path), use_cpu=True, lr_scheduler_type=kind)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    schedule = get_scheduler(kind, optimizer, 2, 10, scheduler_specific_kwargs=args.lr_scheduler_kwargs)
    assert schedule.get_last_lr() == [0.0]
    assert args.lr_scheduler_kwargs == ({"min_lr": 1e-6} if kind == "cosine_with_min_lr" else None)


class Recorder(TrainerCallback):
    """Learning rates of all groups, as the optimiser used them at each step."""

    def __init__(self):
        self.rates: list[list[float]] = []

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        self.rates.append([group["lr"] for group in optimizer.param_groups])


def mae_rate(step: int, steps: int, warm_up: int, peak: float, minimum: float) -> float:
    """MAE's `adjust_learning_rate`, in steps instead of fractions of epochs."""
    if step < warm_up:
        return peak * step / warm_up
    return minimum + (peak - minimum) * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / (steps - warm_up)))


def test_schedule_inside_the_trainer_is_that_of_mae(job):
    recorder, made = Recorder(), job(num_train_epochs=5, learning_rate=2e-3)
    _, history = made.train(callback=recorder)
    groups = layer_decay_groups(made.trainer.model, 1.0, 0.05, 0.65)
    steps, warm_up = 5 * 3, 3  # 48 images in batches of 16; a fifth of the steps
    assert len(recorder.rates) == steps
    for step, rates in enumerate(recorder.rates):
        top = mae_rate(step, steps, warm_up, 2e-3, 1e-6)
        assert rates == pytest.approx([top * group["lr"] for group in groups], rel=1e-6, abs=1e-12), step
    # Three blocks: five layers, of which each has vectors and matrices.
    assert sorted({round(group["lr"], 9) for group in groups}) == [round(0.65**power, 9) for power in (4, 3, 2, 1, 0)]
    assert sum("eval_auroc" in entry for entry in history) == 5


def selected(logits, labels, problem_type=SINGLE_LABEL, names=("a", "b")):
    prediction = EvalPrediction(predictions=np.asarray(logits, np.float32), label_ids=np.asarray(labels))
    with pytest.warns() if len(set(np.ravel(labels).tolist())) == 1 else np.errstate():
        classifier = SimpleNamespace(problem_type=problem_type, class_names=names, class_order=None)
        return selection_metrics(prediction, classifier)["selection"]


def test_auroc_decides_before_the_loss():
    labels = [0, 1, 0, 1]
    ranked = selected([[0, 0.0], [0, 0.2], [0, 0.1], [0, 0.3]], labels)
    confident_but_worse = selected([[0, -4.0], [0, 4.0], [0, 5.0], [0, 6.0]], labels)
    assert ranked == pytest.approx(1, abs=1e-5)
    assert confident_but_worse == pytest.approx(0.75, abs=1e-5)
    assert ranked > confident_but_worse


def test_of_equal_aurocs_the_lower_loss_is_better():
    labels = [0, 1, 0, 1]
    early, late = ([[0, 0.1 * scale * sign] for sign in (-1, 1, -2, 2)] for scale in (1, 20))
    assert selected(late, labels) > selected(early, labels)


def test_without_auroc_the_loss_decides():
    better, worse = ([[0, value]] * 3 for value in (3.0, 1.0))
    assert selected(better, [1, 1, 1]) > selected(worse, [1, 1, 1])


def test_regression_is_selected_by_its_error():
    near, far = ([[1.1], [2.0], [2.9]], [[1.5], [2.5], [2.5]])
    assert selected(near, [1.0, 2.0, 3.0], REGRESSION, ("age",)) == pytest.approx(-(0.01 + 0 + 0.01) / 3, rel=1e-4)
    assert selected(near, [1.0, 2.0, 3.0], REGRESSION, ("age",)) > selected(far, [1.0, 2.0, 3.0], REGRESSION, ("age",))


def test_trainer_is_told_to_select_by_it(tmp_path):
    args = FinetuneTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    assert (args.metric_for_best_model, args.greater_is_better) == ("selection", True)
    for name, greater in {
        "loss": False,
        "mae": False,
        "eval_brier": False,
        "hamming": False,
        "accuracy": True,
    }.items():
        other = FinetuneTrainingArguments(output_dir=str(tmp_path), use_cpu=True, metric_for_best_model=name)
        assert other.greater_is_better is greater


def test_the_folder_holds_the_epoch_of_the_highest_auroc(run, noise_set):
    done = run(
        data=str(noise_set), num_train_epochs=6, seed=2, augmentation="none", drop_path=0.0, learning_rate=1e-2
    )  # fmt: skip
    aurocs = [entry["eval_auroc"] for entry in done.history if "eval_auroc" in entry]
    losses = [entry["eval_loss"] for entry in done.history if "eval_loss" in entry]
    # On noise AUROC goes up and down, so that the last epoch, or the one of the lowest loss, is another.
    assert aurocs[-1] < max(aurocs)
    assert aurocs[int(np.argmin(losses))] < max(aurocs)
    assert done.validation_metrics["auroc"] == pytest.approx(max(aurocs), abs=1e-6)


@pytest.mark.parametrize(
    ("kind", "method"),
    [("retfound", "full"), ("vit_mae", "full"), ("vit", "full"), ("dinov2", "full"), ("retfound", "lora")],
)
def test_weights_of_an_earlier_epoch_come_back(job, stock_folder, tmp_path, kind, method):
    """Highest calibration error: the first epoch. Every tensor must come back, whatever its name on disk."""
    folder = {} if kind == "retfound" else {"model_name_or_path": str(stock_folder(kind))}
    made = job(method=method, metric_for_best_model="ece", greater_is_better=True, save_total_limit=3, **folder)
    model, history = made.train()
    entries = [entry for entry in history if "eval_ece" in entry]
    assert entries[0]["eval_ece"] > entries[1]["eval_ece"] > entries[2]["eval_ece"]
    first = tmp_path / "out" / "checkpoint-3"
    if method == "full":
        stored = AutoModelForImageClassification.from_pretrained(first).state_dict()
        own = model.state_dict()
        assert stored.keys() == own.keys()
        assert all(torch.equal(stored[name], own[name]) for name in stored)
    validation = made.splits["val"]
    scores = to_scores(Classifier(model, made.classifier.processor).logits(validation.images), SINGLE_LABEL)
    metrics = compute_metrics(SINGLE_LABEL, validation.targets, scores, ("amd", "healthy"))
    assert metrics["ece"] == pytest.approx(entries[0]["eval_ece"], rel=1e-4)
    assert metrics["brier"] == pytest.approx(entries[0]["eval_brier"], rel=1e-4)


def test_balanced_draws_come_evenly():
    targets = np.array([0] * 900 + [1] * 90 + [2] * 10)
    drawn = targets[list(BalancedSampler(targets, SINGLE_LABEL, seed=0))]
    assert len(drawn) == 1000
    assert np.bincount(drawn) / 1000 == pytest.approx([1 / 3] * 3, abs=0.05)


def test_balanced_draws_follow_seed_and_epoch():
    targets = np.array([0] * 30 + [1] * 10)

    def draws(seed: int, epoch: int) -> list[int]:
        sampler = BalancedSampler(targets, SINGLE_LABEL, seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert draws(0, 0) == draws(0, 0)
    assert len({tuple(draws(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


@pytest.mark.parametrize("numbers", [False, True])
def test_the_loss_is_weighed_in_training_and_plain_in_evaluation(job, table_set, numbers):
    data = {"data": str(table_set), "label_columns": ["level"], "problem_type": REGRESSION} if numbers else {}
    made = job(**data, **({} if numbers else {"class_weights": "balanced"}))
    train = made.splits["train"]
    scale = made.prepared.target_scale
    trainer = made.method.trainer(made.classifier, train, made.splits["val"], scale)
    model, config = made.classifier.model, made.classifier.model.config
    assert not {"class_weights", "label_smoothing", "target_scale"} & config.to_dict().keys()
    with torch.no_grad():
        torch.nn.init.normal_(model.classifier.weight, std=0.1)
        batch = next(iter(trainer.get_eval_dataloader()))
        logits = model.eval()(batch["pixel_values"]).logits
        logits = scale.to_units(logits) if numbers else logits
        plain = torch.nn.functional.mse_loss if numbers else torch.nn.functional.cross_entropy
        labels = batch["labels"].view_as(logits) if numbers else batch["labels"]
        torch.testing.assert_close(trainer.compute_loss(model, dict(batch)), plain(logits, labels))
        for module in model.modules():
            module.training = module is model  # the logits of evaluation under the loss of training
        found = trainer.compute_loss(model, dict(batch))
    if numbers:
        expected = plain(logits / float(scale.scale[0]), labels / float(scale.scale[0]))
    else:
        counts = np.bincount(train.targets, minlength=logits.shape[1])
        weight = torch.tensor(len(train.targets) / (len(counts) * counts), dtype=torch.float32)
        expected = plain(logits, labels, weight=weight, label_smoothing=0.1, reduction="sum") / len(labels)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("problem_type", [MULTI_LABEL, REGRESSION])
def test_balanced_draws_need_one_class_per_image(problem_type):
    with pytest.raises(BadArgumentError):
        BalancedSampler(np.zeros((4, 2)), problem_type, seed=0)
