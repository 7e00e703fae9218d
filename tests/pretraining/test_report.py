"""What a run writes while it runs: lines, trackers, speeds, the card."""

import json
import math
import time

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from retfound_hf.pretraining.monitor import METRICS_FILE, MetricBuffer, MetricsLog
from retfound_hf.pretraining.pretrain import write_pretrained_card

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
        made.append(MetricsLog(Accelerator(cpu=True), tmp_path, step, 10))
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
    shown.advance()
    assert shown.bar.n == 1


def test_tensorboard_holds_the_scalars_and_the_preview(tmp_path):
    accelerator = Accelerator(
        cpu=True,
        log_with="tensorboard",
        project_config=ProjectConfiguration(str(tmp_path), str(tmp_path / "trackers")),
    )
    accelerator.init_trackers("retfound")
    report = MetricsLog(accelerator, tmp_path, 0, 10)
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


def test_the_card_tells_the_run(make_loop, tiny_arguments, shards, tmp_path):
    loop, _ = make_loop(gradient_accumulation_steps=2, seed=11)
    loop.monitor.log.close()
    model_args, data_args, _ = tiny_arguments(gradient_accumulation_steps=2, seed=11)
    data_args.train_data = [*data_args.train_data, "org/retinas"]
    given = (loop.objective.model, loop.checkpoints.processor, model_args, data_args, loop.args, loop.order)
    path = write_pretrained_card(tmp_path, "my-model", *given, 12.0)
    text = path.read_text(encoding="utf-8")
    for part in (
        "# my-model: RETFound pretrained on colour fundus photographs",
        "Self-supervised pretraining by masked autoencoding on 203 colour fundus photographs, from the weights of",
        f"203 colour fundus photographs of `{shards.name}`, `org/retinas`, without labels.",
        "datasets:\n- org/retinas\n",
        "6 steps of 16 images; mask ratio 0.75, peak learning rate 0.00187, weight decay 0.05, seed 11.",
        "pipeline_tag: image-feature-extraction",
    ):
        assert part in text, part
    assert not [word for word in ("{{", "}}", "{%", "TODO", "None") if word in text]
