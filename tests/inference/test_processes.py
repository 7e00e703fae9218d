"""Two processes write what one process writes."""

import subprocess
import sys
from pathlib import Path

import pytest
from two_processes import run_in_two

SCRIPTS = Path(__file__).parents[2] / "scripts"


def test_evaluate_in_two_processes(classifier_folder, labelled_table, tmp_path):
    from retfound_hf.inference.evaluate import main

    def words(name: str) -> list[str]:
        return [
            "--model_name_or_path", str(classifier_folder), "--data", str(labelled_table), "--output_dir",
            str(tmp_path / name), "--cache_dir", str(tmp_path / f"cache-{name}"), "--dataloader_num_workers", "0",
            "--per_device_eval_batch_size", "1",
        ]  # fmt: skip

    printed = run_in_two(SCRIPTS / "evaluate.py", words("two"), tmp_path, CUDA_VISIBLE_DEVICES="")
    assert printed.count("balanced_accuracy") == 1
    main(words("one"))
    for name in ("metrics.json", "predictions.csv"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes(), name


@pytest.mark.slow
def test_embed_in_two_processes(encoder_folder, images_folder, tmp_path):
    from retfound_hf.inference.embed import main

    def words(name: str) -> list[str]:
        return [
            "--model_name_or_path", str(encoder_folder), "--data", str(images_folder), "--output_dir",
            str(tmp_path / name), "--dataloader_num_workers", "0", "--part_size", "5",
        ]  # fmt: skip

    run_in_two(SCRIPTS / "embed.py", words("two"), tmp_path, CUDA_VISIBLE_DEVICES="")
    main(words("one"))
    contents = [(tmp_path / name / "features.parquet").read_bytes() for name in ("one", "two")]
    assert contents[0] == contents[1]


def test_a_script_exits_with_one_line(tmp_path):
    command = [
        sys.executable, str(SCRIPTS / "evaluate.py"), "--model_name_or_path", str(tmp_path / "absent"), "--data",
        str(tmp_path), "--output_dir", str(tmp_path / "out"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith("error: model ")
    assert not (tmp_path / "out").exists()
