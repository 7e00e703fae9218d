"""Losses that are not finite, and images that cannot be read."""

import csv
import json
import multiprocessing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from retfound_hf.errors import RetFoundError
from retfound_hf.pretraining import loop as loop_module
from retfound_hf.pretraining.data import Position, make_loader
from retfound_hf.pretraining.loop import Loop
from retfound_hf.pretraining.monitor import NonFiniteGuard
from retfound_hf.pretraining.objectives.mae import MaskedAutoencoding
from retfound_hf.pretraining.pretrain import run as pretrain

STEPS, BAD = 12, 7
OPTIONS = {"max_steps": STEPS, "save_steps": 3, "save_total_limit": 99, "logging_steps": 4}


@pytest.fixture
def start(tiny_arguments, tmp_path):
    return lambda name, **options: pretrain(tiny_arguments(tmp_path / name, **{**OPTIONS, **options}))


def plant(patch: pytest.MonkeyPatch, steps: set[int], value: float = float("nan")) -> None:
    """The loss of these steps, counted from 1, is multiplied by `value`, and so are its gradients."""
    forward, taken = MaskedAutoencoding.forward, []

    def planted(self, views):
        taken.append(None)
        loss, logs = forward(self, views)
        return (loss * value if len(taken) in steps else loss), logs

    patch.setattr(MaskedAutoencoding, "forward", planted)


def ids_of_step(make_loop, step: int) -> list[str]:
    """The images of a step counted from 1, from a loader of their own."""
    loop, reader = make_loop(**OPTIONS)
    loader = make_loader(reader, loop.objective.draw, loop.order, Position(), 0, pin_memory=False)
    return [batch["ids"] for batch in loader][step - 1]


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_images(start, make_loop, monkeypatch, tmp_path, value):
    whole = start("whole")
    with monkeypatch.context() as patch, pytest.raises(RetFoundError) as found:
        plant(patch, {BAD}, value)
        start("stopped")
    folder, ids = tmp_path / "stopped", ids_of_step(make_loop, BAD)
    message = str(found.value)
    assert "\n" not in message
    assert f"at step {BAD}, whose images are {', '.join(sorted(ids))} (all in" in message
    assert "--on_non_finite skip" in message
    report = json.loads((folder / f"non_finite-step-{BAD}.json").read_text(encoding="utf-8"))
    assert report["step"] == BAD
    assert report["ids"] == sorted(ids)
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-6"]
    for name in ("model.safetensors", "optimizer.bin"):
        pair = [(root / "checkpoint-6" / name).read_bytes() for root in (folder, whole)]
        assert pair[0] == pair[1]
    start("stopped", resume_from_checkpoint="latest")
    assert (folder / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


@pytest.mark.parametrize("logging_steps", [4, 1])
def test_a_skipped_step_is_as_if_its_update_had_not_happened(start, monkeypatch, tmp_path, logging_steps):
    """Also where it is the only one between two log lines."""
    with monkeypatch.context() as patch:
        plant(patch, {BAD})
        skipped = start("skipped", on_non_finite="skip", logging_steps=logging_steps)
    guarded = loop_module.guarded_step
    with monkeypatch.context() as patch:
        taken = []

        def without_update(accelerator, optimizer, finite):
            taken.append(None)
            if len(taken) != BAD:
                guarded(accelerator, optimizer, finite)

        patch.setattr(loop_module, "guarded_step", without_update)
        expected = start("expected", logging_steps=logging_steps)
    found = load_file(skipped / "model.safetensors")
    assert all(value.isfinite().all() for value in found.values())
    assert (skipped / "model.safetensors").read_bytes() == (expected / "model.safetensors").read_bytes()
    first, second = (
        torch.load(folder / f"checkpoint-{STEPS}" / "optimizer.bin", weights_only=True)["state"]
        for folder in (skipped, expected)
    )
    assert all(torch.equal(first[n][key], second[n][key]) for n in first for key in first[n])
    assert lines(skipped)[-1]["skipped_steps"] == 1
    assert json.loads((skipped / "run.json").read_text(encoding="utf-8"))["skipped_steps"] == 1
    whole, mended = ({line["step"]: line["loss"] for line in lines(folder)} for folder in (expected, skipped))
    if logging_steps == 1:
        assert mended.pop(BAD) is None
        del whole[BAD]
        assert mended == whole
    else:
        assert mended[4] == whole[4]
        assert mended[8] == pytest.approx(whole[8], abs=0.05)
        assert mended[8] != whole[8]


def test_a_skipped_step_before_a_checkpoint_is_counted_once_after_it(start, monkeypatch, tmp_path):
    """Step 5 is skipped, the checkpoint of step 6 lies in its window, and the log line of step 8 comes after both."""
    with monkeypatch.context() as patch:
        plant(patch, {5})
        whole = start("whole", on_non_finite="skip")
    state = json.loads((whole / "checkpoint-6" / "training_state.json").read_text(encoding="utf-8"))
    assert state["skipped_steps"] == 1
    assert np.isfinite(state["window"]).all()
    assert len(state["window"]) == 1
    resumed = start("resumed", on_non_finite="skip", resume_from_checkpoint=str(whole / "checkpoint-6"))
    assert (resumed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    timed = {"images_per_second", "data_wait_fraction"}
    rest = [[{key: line[key] for key in line.keys() - timed} for line in lines(root)] for root in (whole, resumed)]
    assert rest[0][1:] == rest[1]
    assert rest[1][-1]["skipped_steps"] == 1


def test_a_run_that_only_skips_stops(start, monkeypatch):
    plant(monkeypatch, set(range(1, 100)))
    with pytest.raises(RetFoundError, match="none of the 10 steps up to 10 had a finite loss and gradient"):
        start("out", on_non_finite="skip", logging_steps=1, save_steps=0)
    with pytest.raises(RetFoundError, match="none of the 3 steps up to 3 had a finite loss and gradient"):
        start("short", on_non_finite="skip", max_steps=3, save_steps=0)


def norms(*values: float) -> torch.Tensor:
    """Steps of a finite loss and these gradient norms."""
    return torch.tensor([[1.0, value] for value in values])


@pytest.fixture
def scaled(tmp_path):
    """What looks for faults in a run with --fp16 whose loss scale is 2 ** -60."""
    accelerator = SimpleNamespace(scaler=SimpleNamespace(get_scale=lambda: 2.0**-60), is_main_process=True)
    return lambda total_steps=1000, skip=False: NonFiniteGuard(accelerator, tmp_path, skip, total_steps)


@pytest.mark.parametrize("skip", [True, False])
def test_isolated_overflows_are_everyday_work(scaled, skip):
    found = scaled(skip=skip)
    for first in range(0, 400, 40):
        rows = norms(*[float("inf")] * 16, *[1.0] * 7, float("nan"), *[1.0] * 16)
        assert found.check(rows, rows, [["a"]] * 40, first + 40) == list(range(40)), "their losses are finite"
    assert (found.skipped, found.in_a_row) == (0, 0)


def test_overflows_that_never_end_stop_the_run_in_one_line(scaled):
    found = scaled(skip=True)
    for last in range(10, 51, 10):
        found.check(norms(1.0, *[float("inf")] * 9), norms(*[1.0] * 10), [["a"]] * 10, last)
    found.check(norms(*[float("inf")] * 40), norms(*[1.0] * 40), [["a"]] * 40, 90)
    with pytest.raises(
        RetFoundError, match=r"^none of the 50 steps up to 91 had a finite gradient, .* is 8\.67"
    ) as error:
        found.check(norms(float("inf"), 1.0), norms(1.0, 1.0), [["a"]] * 2, 92)
    assert "\n" not in str(error.value) and "--bf16" in str(error.value)
    with pytest.raises(RetFoundError, match="none of the 3 steps up to 3"):
        scaled(total_steps=3).check(norms(*[float("nan")] * 3), norms(*[1.0] * 3), [["a"]] * 3, 3)


def test_a_run_whose_scaled_gradients_always_overflow_stops(start, half_precision_here, monkeypatch, tmp_path):
    forward, finite_from = MaskedAutoencoding.forward, [3]

    def overflowing(self, views):
        loss, logs = forward(self, views)
        finite_from[0] -= 1
        loss.register_hook(lambda gradient: gradient * (1.0 if finite_from[0] < 0 else float("inf")))
        return loss, logs

    monkeypatch.setattr(MaskedAutoencoding, "forward", overflowing)
    folder = start("mended")
    assert half_precision_here.get_scale() == 65536 / 2**3
    assert "skipped_steps" not in lines(folder)[-1]
    assert lines(folder)[0]["grad_norm"] > 0, "of the step that did not overflow"
    # The checkpoint of step 3 lies between two log lines.
    resumed = start("resumed", resume_from_checkpoint=str(folder / "checkpoint-3"))
    assert lines(resumed)[0]["grad_norm"] == pytest.approx(lines(folder)[0]["grad_norm"])
    finite_from[0] = 10_000
    with pytest.raises(RetFoundError, match="none of the 50 steps up to 50 had a finite gradient"):
        start("collapsed", max_steps=60, save_steps=0, logging_steps=5)
    assert not (tmp_path / "collapsed" / "config.json").exists()


@pytest.fixture(scope="module")
def damaged(write_shard, make_picture, encode, tmp_path_factory) -> Path:
    """60 images; 7 is no image, 11 is cut off, 12 has another size."""
    images = [encode(make_picture(number)) for number in range(60)]
    images[7], images[11], images[12] = b"no image", images[11][:900], encode(make_picture(12, side=48))
    folder = tmp_path_factory.mktemp("damaged")
    write_shard(folder / "train-00000.parquet", images, [f"img{number}" for number in range(60)])
    return folder


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_listed_and_replaced(start, damaged, monkeypatch, tmp_path, workers):
    used, step = [], Loop.step

    def watched(self, batches):
        step(self, batches)
        used.append(self.buffer.ids[-1])

    monkeypatch.setattr(Loop, "step", watched)
    folder = start(
        "out", train_data=[str(damaged)], max_bad_share=0.05, max_steps=-1, num_train_epochs=2,
        per_device_train_batch_size=10, dataloader_num_workers=workers,
    )  # fmt: skip
    assert len(used) == STEPS
    assert all(len(names) == 10 for names in used)
    epoch = [name for names in used[:6] for name in names]
    assert set(epoch) == {f"img{number}" for number in range(60)} - {"img7", "img11", "img12"}
    assert {name for name in epoch if epoch.count(name) > 1} == {"img8", "img13"}
    with open(folder / "rejected.csv", newline="", encoding="utf-8") as file:
        rows = {row["id"]: row["reason"] for row in csv.DictReader(file)}
    assert rows.keys() == {"img7", "img11", "img12"}
    assert "truncated" in rows["img11"]
    assert "48 x 48, others have 64 x 64" in rows["img12"]
    assert lines(folder)[-1]["rejected_images"] == 3
    assert json.loads((folder / "run.json").read_text(encoding="utf-8"))["rejected_images"] == 3


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("share, reason", [(0.04, "more than --max_bad_share 0.04 of 60"), (0.0, "unreadable")])
def test_too_many_unreadable_images_stop_the_run_in_one_line(start, damaged, workers, share, reason):
    with pytest.raises(RetFoundError, match=reason) as found:
        start(
            "out", train_data=[str(damaged)], max_bad_share=share, per_device_train_batch_size=10,
            dataloader_num_workers=workers, max_steps=STEPS,
        )  # fmt: skip
    assert not multiprocessing.active_children(), "loader workers outlive the run"
    assert "\n" not in str(found.value)
    assert "Traceback" not in str(found.value)
    assert str(found.value).endswith("mend the shards, or raise --max_bad_share")
