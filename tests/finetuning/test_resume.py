"""A run that was stopped and resumed ends where an uninterrupted one does."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from retfound_hf.errors import BadArgumentError, OutputError
from retfound_hf.finetuning.finetune import checkpoint_to_resume
from retfound_hf.finetuning.methods import METHODS

RECIPE = {"num_train_epochs": 4, "augmentation": "recipe", "drop_path": 0.3, "save_total_limit": None}


class StopAt(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise InterruptedError


def assert_same(first: torch.nn.Module, second: torch.nn.Module) -> None:
    one, two = first.state_dict(), second.state_dict()
    assert one.keys() == two.keys()
    for name in one:
        assert torch.allclose(one[name], two[name], atol=1e-6), name


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({}, "retfound"),
        ({"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}, "retfound"),
        ({"sampler": "balanced"}, "retfound"),
        ({"mixup": 0.8, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}, "retfound"),
        ({"method": "lora", "lora_dropout": 0.1}, "retfound"),
        ({}, "vit"),
        ({}, "dinov2"),
        ({"dataloader_num_workers": 1}, "retfound"),
    ],
    ids=["epochs", "mid-epoch", "sampler", "mixup-accumulation", "lora", "vit", "dinov2", "worker"],
)
def test_resumed_equals_uninterrupted(job, stock_folder, tmp_path, options, kind):
    options = {**RECIPE, **options}
    if kind != "retfound":
        options["model_name_or_path"] = str(stock_folder(kind))
    whole, history = job(output_dir=str(tmp_path / "whole"), **options).train()
    folder = tmp_path / "stopped"
    steps = max(entry["step"] for entry in history)
    with pytest.raises(InterruptedError):
        job(output_dir=str(folder), **options).train(callback=StopAt(steps // 2 + 2))
    torch.manual_seed(123)  # whatever state the new process is in
    made = job(output_dir=str(folder), resume_from_checkpoint="latest", **options)
    resumed, resumed_history = made.train(checkpoint_to_resume(made.args, made.method))
    assert_same(whole, resumed)
    losses = [[e["loss"] for e in h if "loss" in e] for h in (history, resumed_history)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


@pytest.mark.slow
def test_a_killed_run_goes_on(arguments, encoder_folder, planted, cache_dir, tmp_path):
    """The command itself, killed as by a scheduler, then given again with --resume_from_checkpoint latest."""
    script = Path(__file__).parents[2] / "scripts" / "finetune.py"
    words = [
        sys.executable, str(script), "--model_name_or_path", str(encoder_folder), "--data", str(planted),
        "--cache_dir", str(cache_dir), "--num_train_epochs", "30", "--use_cpu", "--dataloader_num_workers", "0",
        "--learning_rate", "1e-3", "--disable_tqdm", "true",
    ]  # fmt: skip
    folder = tmp_path / "killed"
    process = subprocess.Popen(
        [*words, "--output_dir", str(folder)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    for line in process.stdout:
        if "'epoch': '3'" in line and "eval_auroc" in line:
            break
    else:
        pytest.fail("the run ended before its third epoch")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not (folder / "config.json").exists()
    assert list(folder.glob("checkpoint-*"))
    resumed = [*words, "--output_dir", str(folder), "--resume_from_checkpoint", "latest"]
    done = subprocess.run(resumed, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    whole = subprocess.run([*words, "--output_dir", str(tmp_path / "whole")], capture_output=True, timeout=120)
    assert whole.returncode == 0
    assert (folder / "predictions.csv").read_bytes() == (tmp_path / "whole" / "predictions.csv").read_bytes()


def test_a_checkpoint_that_was_cut_off_is_passed_over(arguments, tmp_path):
    args = arguments(resume_from_checkpoint="latest")
    for step, names in ((9, ["model.safetensors", "trainer_state.json"]), (12, ["model.safetensors"])):
        for name in names:
            path = Path(args.output_dir) / f"checkpoint-{step}" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    assert Path(checkpoint_to_resume(args, METHODS["full"](args))).name == "checkpoint-9"


def test_nothing_to_resume_is_refused(arguments, tmp_path):
    for options, error in (
        ({"resume_from_checkpoint": "latest"}, OutputError),
        ({"resume_from_checkpoint": str(tmp_path / "absent")}, BadArgumentError),
        ({"resume_from_checkpoint": "latest", "method": "linear"}, BadArgumentError),
    ):
        args = arguments(**options)
        with pytest.raises(error):
            checkpoint_to_resume(args, METHODS[args.method](args))
    args = arguments()
    assert checkpoint_to_resume(args, METHODS["full"](args)) is None
