"""Files of the package that a run goes through: the walk of the data stays short."""

import pytest
from small_runs import write_shards
from tiny import save_autoencoder, save_planted_set
from walk import files_entered

QUIET = ["--dataloader_num_workers", "0"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("walk")
    save_autoencoder(root / "encoder")
    save_planted_set(root / "images", {"train": 8, "val": 4, "test": 4})
    return root


def test_finetune_and_evaluate(data):
    from retfound_hf.finetuning.finetune import main as finetune
    from retfound_hf.inference.evaluate import main as evaluate

    def words(model, out, *more):
        return ["--model_name_or_path", str(data / model), "--data", str(data / "images"), "--output_dir",
                str(data / out), "--cache_dir", str(data / "cache"), *QUIET, *more]  # fmt: skip

    options = ("--num_train_epochs", "1", "--use_cpu", "--disable_tqdm", "true")
    found = files_entered(finetune, words("encoder", "classifier", *options))
    assert len(found) <= 40, sorted(found)
    found = files_entered(evaluate, words("classifier", "evaluation"))
    assert len(found) <= 33, sorted(found)


def test_pretrain(data):
    from retfound_hf.pretraining.pretrain import main as pretrain

    write_shards(data / "shards", (16,))
    words = ["--config_name", "retfound-tiny", "--image_size", "64", "--train_data", str(data / "shards")]
    words += ["--cache_dir", str(data / "cache"), "--output_dir", str(data / "pretrained"), "--max_steps", "2"]
    found = files_entered(pretrain, [*words, "--per_device_train_batch_size", "8", *QUIET])
    assert len(found) <= 25, sorted(found)
