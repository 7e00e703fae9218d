"""Layer-wise learning rates against an independent implementation of the official rule, and the schedule per step."""

import math

import pytest
import torch
from transformers import AutoModelForImageClassification, TrainerCallback, get_scheduler

from retfound_hf import RetFoundForImageClassification
from retfound_hf.finetuning.arguments import FinetuneTrainingArguments
from retfound_hf.finetuning.classifier import build_classifier
from retfound_hf.finetuning.methods import METHODS
from retfound_hf.finetuning.trainer import layer_decay_groups

RATE, DECAY, WEIGHT_DECAY = 1e-3, 0.65, 0.05
LABELS = {"num_labels": 2, "id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "b": 1}, "problem_type": None}
# How a name in transformers starts -> how the same part is called in timm, whose names the official rule reads.
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


def test_each_trained_parameter_is_in_one_group(classifier):
    members = [id(p) for g in layer_decay_groups(classifier, RATE, WEIGHT_DECAY, DECAY) for p in g["params"]]
    assert len(members) == len(set(members))
    assert set(members) == {id(parameter) for parameter in classifier.parameters() if parameter.requires_grad}


def test_rates_of_retfound_by_hand(encoder_folder):
    model = build_classifier(str(encoder_folder), None, LABELS)
    groups = layer_decay_groups(model, RATE, WEIGHT_DECAY, DECAY)
    group_of = {id(parameter): group for group in groups for parameter in group["params"]}
    named = dict(model.named_parameters())
    by_hand = {  # three blocks: layers 0 to 4
        "vit.embeddings.position_embeddings": (RATE * 0.65**4, 0.0),
        "vit.embeddings.cls_token": (RATE * 0.65**4, 0.0),
        "vit.embeddings.patch_embeddings.projection.weight": (RATE * 0.65**4, 0.05),
        "vit.embeddings.patch_embeddings.projection.bias": (RATE * 0.65**4, 0.0),
        "vit.encoder.layer.0.attention.attention.query.weight": (RATE * 0.65**3, 0.05),
        "vit.encoder.layer.2.intermediate.dense.weight": (RATE * 0.65, 0.05),
        "vit.encoder.layer.2.layernorm_after.weight": (RATE * 0.65, 0.0),
        "fc_norm.weight": (RATE, 0.0),
        "classifier.weight": (RATE, 0.05),
        "classifier.bias": (RATE, 0.0),
    }
    for name, (rate, weight_decay) in by_hand.items():
        group = group_of[id(named[name])]
        assert (group["lr"], group["weight_decay"]) == (pytest.approx(rate), weight_decay), name


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
        args.resolve_learning_rate(METHODS[args.method].base_learning_rate)
        return args.training.learning_rate

    assert resolved() == pytest.approx(3.125e-4)  # 16 x 5e-3 / 256
    assert resolved(gradient_accumulation_steps=2, per_device_train_batch_size=8) == pytest.approx(3.125e-4)
    assert resolved(method="lora", per_device_train_batch_size=64) == pytest.approx(5e-3)
    assert resolved(base_learning_rate=1e-3, per_device_train_batch_size=256) == pytest.approx(1e-3)
    assert resolved(learning_rate=7e-4) == 7e-4
    assert resolved(gpus=2) == pytest.approx(2 * 3.125e-4)


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


def test_last_rate_of_a_long_schedule_is_a_millionth(tmp_path):
    args = FinetuneTrainingArguments(output_dir=str(tmp_path), use_cpu=True, learning_rate=5e-4)
    scheduler = get_scheduler(
        args.lr_scheduler_type,
        torch.optim.AdamW(torch.nn.Linear(2, 2).parameters(), lr=5e-4),
        num_warmup_steps=args.get_warmup_steps(1000),
        num_training_steps=1000,
        scheduler_specific_kwargs=args.lr_scheduler_kwargs,
    )
    rates = [5e-4 * scheduler.lr_lambdas[0](step) for step in (100, 200, 600, 1000)]
    assert rates == pytest.approx([2.5e-4, 5e-4, (5e-4 + 1e-6) / 2, 1e-6])


def test_auto_class_and_own_class_have_the_same_groups(encoder_folder, tmp_path):
    model = build_classifier(str(encoder_folder), None, LABELS)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert isinstance(loaded, RetFoundForImageClassification)
    sizes = [[len(g["params"]) for g in layer_decay_groups(m, RATE, 0.05, 0.65)] for m in (model, loaded)]
    assert sizes[0] == sizes[1]
