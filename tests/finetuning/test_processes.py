"""Fine-tuning in two processes: one model, one report, every image counted once."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
from two_processes import run_in_two

from retfound_hf.finetuning.finetune import main

SCRIPT = Path(__file__).parents[2] / "scripts" / "finetune.py"


@pytest.mark.slow
def test_two_processes_equal_one(encoder_folder, planted, cache_dir, tmp_path):
    """At the same global batch, without randomness per image; 15 validation images do not divide by two."""
    data = tmp_path / "data"
    shutil.copytree(planted, data)
    sorted((data / "val" / "amd").iterdir())[0].unlink()
    common = [
        "--model_name_or_path", str(encoder_folder), "--data", str(data),
        "--cache_dir", str(cache_dir), "--dataloader_num_workers", "0", "--augmentation", "none",
        "--drop_path", "0", "--num_train_epochs", "3", "--learning_rate", "3e-3", "--per_device_eval_batch_size", "4",
    ]  # fmt: skip
    common += ["--disable_tqdm", "true", "--output_dir"]
    main([*common, str(tmp_path / "one"), "--per_device_train_batch_size", "16"])
    run_in_two(SCRIPT, [*common, str(tmp_path / "two"), "--per_device_train_batch_size", "8"], tmp_path)
    tables = [pd.read_csv(tmp_path / name / "validation" / "predictions.csv") for name in ("one", "two")]
    assert len(tables[1]) == 15
    assert tables[1]["id"].is_unique
    assert list(tables[0]["id"]) == list(tables[1]["id"])
    assert tables[1]["prob/amd"].to_numpy() == pytest.approx(tables[0]["prob/amd"].to_numpy(), abs=1e-3)
    histories = [pd.read_json(tmp_path / name / "history.json") for name in ("one", "two")]
    for column in ("eval_auroc", "eval_brier"):
        one, two = (history[column].dropna().to_numpy() for history in histories)
        assert two == pytest.approx(one, abs=1e-3)
