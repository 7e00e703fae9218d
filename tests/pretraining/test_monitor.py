"""Monitoring: log lines, trackers and speeds; losses that are not finite; unreadable images; probes and previews."""

import csv
import itertools
import json
import math
import multiprocessing
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from PIL import Image
from safetensors.torch import load_file
from small_runs import encoded, metrics_of, moments_of, picture, write_parquet
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from retfound_hf.errors import BadDataError, DivergedError
from retfound_hf.pretraining import loop as loop_module
from retfound_hf.pretraining.data import make_loader
from retfound_hf.pretraining.loop import Loop
from retfound_hf.pretraining.monitor import (
    METRICS_FILE,
    LinearProbeMonitor,
    MetricBuffer,
    MetricsLog,
    NonFiniteGuard,
    Previews,
)
from retfound_hf.pretraining.objectives.mae import MaskedAutoencoding

NUMBERS = {"loss": 0.5, "learning_rate": 1e-3, "images_per_second": 10.0, "data_wait_fraction": 0.25}


@pytest.fixture
def lines(tmp_path):
    """Reads the lines, strictly: NaN is no JSON."""

    def refuse(word: str):
        raise AssertionError(word)

    def read() -> list[dict]:
        text = (tmp_path / METRICS_FILE).read_text(encoding="utf-8")
        assert text == "" or text.endswith("\n")
        return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]

    return read


@pytest.fixture
def report(tmp_path):
    made = []

    def make(step: int = 0) -> MetricsLog:
        made.append(MetricsLog(Accelerator(cpu=True), tmp_path))
        made[-1].start(step, 10)
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_lines_after_the_checkpoint_and_half_lines_are_removed(report, lines, tmp_path):
    first = report()
    for step in (2, 4, 6, 8):
        first.log({"step": step, "loss": step / 10})
    with open(tmp_path / METRICS_FILE, "a", encoding="utf-8") as file:
        file.write('{"step": 10, "lo')  # killed while it wrote
    again = report(step=5)
    assert lines() == [{"step": 2, "loss": 0.2}, {"step": 4, "loss": 0.4}]
    again.log({"step": 6, "loss": 0.7})
    assert lines()[-1] == {"step": 6, "loss": 0.7}
    assert (again.bar.n, again.bar.total) == (5, 10)
    report(step=0)
    assert lines() == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_null(report, lines, value):
    report().log({"step": 1, "loss": 1.5, "grad_norm": value})
    assert lines() == [{"step": 1, "loss": 1.5, "grad_norm": None}]


def test_numbers_keep_every_digit(report, lines):
    report().log({"step": 1, "loss": 1 / 3})
    assert lines()[0]["loss"] == 1 / 3


def test_other_processes_write_nothing(report, tmp_path, monkeypatch):
    (tmp_path / METRICS_FILE).write_text('{"step": 9}\n')
    monkeypatch.setattr(Accelerator, "is_main_process", False)
    other = report(step=1)
    other.log({"step": 2, "loss": 1.0})
    assert (tmp_path / METRICS_FILE).read_text() == '{"step": 9}\n'
    assert other.bar.disable


def test_the_progress_bar_shows_the_latest_numbers(report):
    shown = report()
    shown.show({**NUMBERS, "step": 4})
    assert shown.bar.postfix == "loss=0.5000, lr=1.00e-03, images/s=10, wait=25%"
    shown.bar.update()
    assert shown.bar.n == 1


def test_tensorboard_holds_the_scalars_and_the_preview(tmp_path):
    accelerator = Accelerator(
        cpu=True,
        log_with="tensorboard",
        project_config=ProjectConfiguration(str(tmp_path), str(tmp_path / "trackers")),
    )
    accelerator.init_trackers("retfound")
    report = MetricsLog(accelerator, tmp_path)
    for step in (2, 4):
        report.log({"step": step, "loss": step / 8, "grad_norm": math.nan, "skipped_steps": 3})
    picture = torch.zeros(1, 6, 10, 3, dtype=torch.uint8)
    picture[0, :, :, 0] = 200
    report.show_picture(picture, 4)
    report.close()
    events = EventAccumulator(str(tmp_path / "trackers" / "retfound"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"loss", "skipped_steps"}
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(2, 0.25), (4, 0.5)]
    (image,) = events.Images("preview")
    assert (image.step, image.width, image.height) == (4, 10, 6)


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on when it is told to."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def pass_by(seconds: float) -> None:
        now[0] += seconds

    return pass_by


def test_speed_counts_training_and_tells_waiting_from_work(clock):
    window = MetricBuffer(_started=0.0)
    for _ in range(4):
        with window.waiting():
            clock(0.5)
        clock(1.5)
        window.add(torch.tensor([1.0, 2.0]), ["a"], 32)
    with window.paused():
        clock(1000)
    assert window.speed() == {"images_per_second": 16.0, "data_wait_fraction": 0.25}
    assert window.values().shape == (4, 2)


def test_a_restored_window_has_the_numbers_to_the_bit(clock):
    window = MetricBuffer()
    rows = torch.rand(3, 2)
    for row in rows:
        window.add(row, ["a"], 8)
    found = MetricBuffer(_started=0.0)
    found.restore(json.loads(json.dumps(window.values().double().tolist())), torch.device("cpu"))
    assert torch.equal(found.values(), rows)
    assert len(found.ids) == 3
    clock(2)
    found.add(rows[0], ["b"], 8)
    assert found.speed()["images_per_second"] == 4  # images of before are not counted over the time since


STEPS, BAD = 12, 7
OPTIONS = {"max_steps": STEPS, "save_steps": 3, "save_total_limit": 99, "logging_steps": 4}


@pytest.fixture
def watch(start):
    """Runs of twelve steps with a checkpoint every third; returns the folder."""
    return lambda name="out", **options: start(name, **{**OPTIONS, **options}).output_dir


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
    loader = make_loader(reader, loop.objective.draw, loop.order, loop.position, 0, pin_memory=False)
    return [batch["ids"] for batch in loader][step - 1]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_images(watch, make_loop, monkeypatch, tmp_path, value):
    whole = watch("whole")
    with monkeypatch.context() as patch, pytest.raises(DivergedError) as found:
        plant(patch, {BAD}, value)
        watch("stopped")
    folder, ids = tmp_path / "stopped", ids_of_step(make_loop, BAD)
    assert (found.value.step, found.value.ids) == (BAD, tuple(sorted(ids))) and "\n" not in str(found.value)
    report = json.loads((folder / f"non_finite-step-{BAD}.json").read_text(encoding="utf-8"))
    assert report["step"] == BAD
    assert report["ids"] == sorted(ids)
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-6"]
    for name in ("model.safetensors", "optimizer.bin"):
        pair = [(root / "checkpoint-6" / name).read_bytes() for root in (folder, whole)]
        assert pair[0] == pair[1]
    watch("stopped", resume_from_checkpoint="latest")
    assert (folder / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


@pytest.mark.parametrize("logging_steps", [4, 1])
def test_a_skipped_step_is_as_if_its_update_had_not_happened(watch, monkeypatch, tmp_path, logging_steps):
    """Also where it is the only one between two log lines."""
    with monkeypatch.context() as patch:
        plant(patch, {BAD})
        skipped = watch("skipped", on_non_finite="skip", logging_steps=logging_steps)
    guarded = loop_module.guarded_step
    with monkeypatch.context() as patch:
        taken = []

        def without_update(accelerator, optimizer, finite):
            taken.append(None)
            if len(taken) != BAD:
                guarded(accelerator, optimizer, finite)

        patch.setattr(loop_module, "guarded_step", without_update)
        expected = watch("expected", logging_steps=logging_steps)
    found = load_file(skipped / "model.safetensors")
    assert all(value.isfinite().all() for value in found.values())
    assert (skipped / "model.safetensors").read_bytes() == (expected / "model.safetensors").read_bytes()
    first, second = (moments_of(folder / f"checkpoint-{STEPS}") for folder in (skipped, expected))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert metrics_of(skipped)[-1]["skipped_steps"] == 1
    assert json.loads((skipped / "run.json").read_text(encoding="utf-8"))["skipped_steps"] == 1
    whole, mended = ({line["step"]: line["loss"] for line in metrics_of(folder)} for folder in (expected, skipped))
    if logging_steps == 1:
        assert mended.pop(BAD) is None
        del whole[BAD]
        assert mended == whole
    else:
        assert mended[4] == whole[4]
        assert mended[8] == pytest.approx(whole[8], abs=0.05)
        assert mended[8] != whole[8]


def test_a_skipped_step_before_a_checkpoint_is_counted_once_after_it(watch, monkeypatch, tmp_path):
    """Step 5 is skipped, the checkpoint of step 6 lies in its window, and the log line of step 8 comes after both."""
    with monkeypatch.context() as patch:
        plant(patch, {5})
        whole = watch("whole", on_non_finite="skip")
    state = json.loads((whole / "checkpoint-6" / "training_state.json").read_text(encoding="utf-8"))
    assert state["skipped_steps"] == 1
    assert np.isfinite(state["window"]).all()
    assert len(state["window"]) == 1
    resumed = watch("resumed", on_non_finite="skip", resume_from_checkpoint=str(whole / "checkpoint-6"))
    assert (resumed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    rest = [metrics_of(root) for root in (whole, resumed)]
    assert rest[0][1:] == rest[1]
    assert rest[1][-1]["skipped_steps"] == 1


def test_a_run_that_only_skips_stops(watch, monkeypatch):
    plant(monkeypatch, set(range(1, 100)))
    for step, options in ((10, {}), (3, {"max_steps": 3})):
        with pytest.raises(DivergedError) as error:
            watch(f"out-{step}", on_non_finite="skip", logging_steps=1, save_steps=0, **options)
        assert error.value.step == step


def norms(*values: float) -> torch.Tensor:
    """Steps of a finite loss and these gradient norms."""
    return torch.tensor([[1.0, value] for value in values])


@pytest.fixture
def scaled(tmp_path):
    """Search for faults in a run with --fp16 whose loss scale is 2 ** -60."""
    accelerator = SimpleNamespace(scaler=SimpleNamespace(get_scale=lambda: 2.0**-60), is_main_process=True)
    return lambda total_steps=1000, skip=False: NonFiniteGuard(accelerator, tmp_path, skip, total_steps)


@pytest.mark.parametrize("skip", [True, False])
def test_isolated_overflows_are_everyday_work(scaled, skip):
    found = scaled(skip=skip)
    for first in range(0, 400, 40):
        rows = norms(*[float("inf")] * 16, *[1.0] * 7, float("nan"), *[1.0] * 16)
        assert found.check(rows, rows, [["a"]] * 40, first + 40) == list(range(40)), "their losses are finite"
    assert (found.skipped, found.skipped_in_a_row) == (0, 0)


def test_overflows_that_never_end_stop_the_run_in_one_line(scaled):
    found = scaled(skip=True)
    for last in range(10, 51, 10):
        found.check(norms(1.0, *[float("inf")] * 9), norms(*[1.0] * 10), [["a"]] * 10, last)
    found.check(norms(*[float("inf")] * 40), norms(*[1.0] * 40), [["a"]] * 40, 90)
    with pytest.raises(DivergedError) as error:
        found.check(norms(float("inf"), 1.0), norms(1.0, 1.0), [["a"]] * 2, 92)
    assert error.value.step == 91 and "8.67" in str(error.value)
    with pytest.raises(DivergedError) as error:
        scaled(total_steps=3).check(norms(*[float("nan")] * 3), norms(*[1.0] * 3), [["a"]] * 3, 3)
    assert error.value.step == 3


def test_a_run_whose_scaled_gradients_always_overflow_stops(watch, half_precision_here, monkeypatch, tmp_path):
    forward, finite_from = MaskedAutoencoding.forward, [3]

    def overflowing(self, views):
        loss, logs = forward(self, views)
        finite_from[0] -= 1
        loss.register_hook(lambda gradient: gradient * (1.0 if finite_from[0] < 0 else float("inf")))
        return loss, logs

    monkeypatch.setattr(MaskedAutoencoding, "forward", overflowing)
    folder = watch("mended")
    assert half_precision_here.get_scale() == 65536 / 2**3
    assert "skipped_steps" not in metrics_of(folder)[-1]
    assert metrics_of(folder)[0]["grad_norm"] > 0, "of the step that did not overflow"
    # The checkpoint of step 3 lies between two log lines.
    resumed = watch("resumed", resume_from_checkpoint=str(folder / "checkpoint-3"))
    assert metrics_of(resumed)[0]["grad_norm"] == pytest.approx(metrics_of(folder)[0]["grad_norm"])
    finite_from[0] = 10_000
    with pytest.raises(DivergedError) as error:
        watch("collapsed", max_steps=60, save_steps=0, logging_steps=5)
    assert error.value.step == 50
    assert not (tmp_path / "collapsed" / "config.json").exists()


@pytest.fixture(scope="module")
def damaged(tmp_path_factory) -> Path:
    """60 images; 7 is no image, 11 is cut off, 12 has another size."""
    images = [encoded(picture(number)) for number in range(60)]
    images[7], images[11], images[12] = b"no image", images[11][:900], encoded(picture(12, side=48))
    folder = tmp_path_factory.mktemp("damaged")
    write_parquet(folder / "train-00000.parquet", images, [f"img{number}" for number in range(60)])
    return folder


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_listed_and_replaced(watch, damaged, monkeypatch, tmp_path, workers):
    used, step = [], Loop.step

    def watched(self, batches):
        step(self, batches)
        used.append(self.buffer.ids[-1])

    monkeypatch.setattr(Loop, "step", watched)
    folder = watch(
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
    assert metrics_of(folder)[-1]["rejected_images"] == 3
    assert json.loads((folder / "run.json").read_text(encoding="utf-8"))["rejected_images"] == 3


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("share, rows", [(0.04, ("img11", "img12", "img7")), (0.0, None)])
def test_too_many_unreadable_images_stop_the_run_in_one_line(watch, damaged, workers, share, rows):
    with pytest.raises(BadDataError) as error:
        watch(
            "out", train_data=[str(damaged)], max_bad_share=share, per_device_train_batch_size=10,
            dataloader_num_workers=workers,
        )  # fmt: skip
    assert not multiprocessing.active_children(), "loader workers outlive the run"
    assert error.value.rows == rows if rows else error.value.rows[0] in ("img7", "img11", "img12")
    assert "\n" not in str(error.value)


SPLITS = {"train": 40, "val": 20, "test": 100}


def labelled(folder, planted: bool):
    """A table of 160 images of noise, whose two classes have another mean brightness, or nothing that tells them."""
    generator = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    rows = []
    for split, count in SPLITS.items():
        for index in range(count):
            label = index % 2
            name = f"images/{split}{index:03d}.png"
            pixels = generator.normal(110 + 40 * label * planted, 30, (32, 32, 3)).clip(0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name)
            rows.append({"image": name, "label": "ab"[label], "split": split})
    pd.DataFrame(rows).to_csv(folder / "table.csv", index=False)
    return str(folder / "table.csv")


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    root = tmp_path_factory.mktemp("labelled")
    return {planted: labelled(root / str(planted), planted) for planted in (True, False)}


@pytest.mark.parametrize(("planted", "low", "high"), [(True, 0.98, 1.0), (False, 0.33, 0.67)])
def test_the_probe_finds_what_was_planted(make_loop, sets, planted, low, high):
    loop, _ = make_loop(probe_data=sets[planted], modality="oct")
    loop.network.train()
    before = {name: values.clone() for name, values in loop.objective.state_dict().items()}
    auroc = loop.monitor.probe.auroc(loop.objective)
    assert low <= auroc <= high
    assert loop.monitor.probe.auroc(loop.objective) == auroc
    assert all(module.training for module in loop.objective.modules())
    assert all(torch.equal(values, before[name]) for name, values in loop.objective.state_dict().items())


def test_a_resnet_is_probed_too(make_loop, sets, resnet_folder):
    options = {"model_name_or_path": str(resnet_folder), "image_size": 32, "objective": "simclr"}
    loop, _ = make_loop(probe_data=sets[True], **options)
    assert loop.monitor.probe.auroc(loop.objective) > 0.98
    # Statistics of batch norms are those of training, which the probe does not touch.
    assert not loop.objective.encoder.embedder.embedder.normalization.running_mean.any()


def test_the_probe_is_of_the_encoder_as_it_is(make_loop, sets):
    loop, _ = make_loop(probe_data=sets[True])
    with torch.no_grad():
        for parameter in loop.objective.encoder.parameters():
            parameter.zero_()
    assert loop.monitor.probe.auroc(loop.objective) == 0.5


@pytest.mark.parametrize("epochs", [0.5, 1, 2, 10])
@pytest.mark.parametrize("per_epoch", [1, 3, 7, 30])
def test_probes_are_due_once_per_interval(sets, epochs, per_epoch):
    monitor = LinearProbeMonitor(sets[True], epochs, None, None, {})
    times = np.arange(30 * per_epoch + 1) / per_epoch
    due = [after for before, after in itertools.pairwise(times) if monitor.is_due(before, after)]
    expected = sorted({np.ceil(n * epochs * per_epoch - 1e-6) / per_epoch for n in range(1, int(30 / epochs) + 1)})
    assert due == pytest.approx(expected)


def test_a_run_probes_at_its_start_on_its_way_and_at_its_end(make_loop, sets, tmp_path):
    loop, reader = make_loop(
        probe_data=sets[True], probe_epochs=0.5, max_steps=None, num_train_epochs=1, per_device_train_batch_size=32,
        logging_steps=100,
    )  # fmt: skip
    batches = make_loader(reader, loop.objective.draw, loop.order, loop.position, 0, pin_memory=False)
    assert loop.train(iter(batches)) is None
    lines = metrics_of(tmp_path / "out")
    probes = [(line["step"], line["epoch"]) for line in lines if "probe_auroc" in line]
    assert probes == [(0, 0), (3, 0.5), (6, 1)]
    assert all(0.9 < line["probe_auroc"] <= 1 for line in lines if "probe_auroc" in line)


def test_sets_that_cannot_be_probed_are_refused(make_loop, sets, tmp_path):
    table = pd.read_csv(sets[True])
    table["image"] = sets[True].removesuffix("table.csv") + table["image"]
    table.assign(label=np.linspace(0, 1, len(table))).to_csv(tmp_path / "numbers.csv", index=False)
    for name in ("numbers.csv", "absent.csv"):
        with pytest.raises(BadDataError) as error:
            make_loop(probe_data=str(tmp_path / name))
        assert error.value.source == str(tmp_path / name)


def test_previews_show_the_same_images_and_masks_each_time(make_loop, tmp_path):
    loop, reader = make_loop(preview_steps=2, max_steps=4, base_learning_rate=0.5)
    batches = make_loader(reader, loop.objective.draw, loop.order, loop.position, 0, pin_memory=False)
    first = loop.monitor.previews.write(loop.objective, 0, torch.device("cpu"))
    again = loop.monitor.previews.write(loop.objective, 0, torch.device("cpu"))
    assert torch.equal(first, again)
    loop.train(iter(batches))
    folder = tmp_path / "out" / "previews"
    assert sorted(path.name for path in folder.iterdir()) == [f"step-{n:07d}.png" for n in (0, 2, 4)]
    pages = [np.asarray(Image.open(path)) for path in sorted(folder.iterdir())]
    assert np.array_equal(pages[0], first[0].numpy())
    # Three columns of four tiles; only the reconstructions change.
    tile, margin = 32, 2
    columns = [slice(margin + n * (tile + margin), (n + 1) * (tile + margin)) for n in range(3)]
    assert pages[0].shape[1] == margin + 3 * (tile + margin)
    for page in pages[1:]:
        assert np.array_equal(page[:, columns[0]], pages[0][:, columns[0]])
        assert np.array_equal(page[:, columns[1]], pages[0][:, columns[1]])
        assert not np.array_equal(page[:, columns[2]], pages[0][:, columns[2]])
    torch.rand(1)  # whatever was drawn before
    other = Previews(reader, loop.objective, tmp_path / "other", loop.args.seed, steps=2)
    assert torch.equal(other.draws["noise"], loop.monitor.previews.draws["noise"])
    assert torch.equal(other.images, reader.read([0, 50, 101, 152])[0])
