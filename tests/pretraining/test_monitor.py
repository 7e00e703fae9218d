"""The linear probe finds a planted signal and nothing in noise; previews show the same images and masks."""

import itertools
import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from transformers import ResNetConfig, ResNetModel

from retfound_hf.errors import RetFoundError
from retfound_hf.pretraining.data import make_loader
from retfound_hf.pretraining.monitor import LinearProbeMonitor, Previews

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
    loop.monitor.log.close()
    loop.network.train()
    before = {name: values.clone() for name, values in loop.objective.state_dict().items()}
    auroc = loop.monitor.probe.auroc(loop.objective)
    assert low <= auroc <= high
    assert loop.monitor.probe.auroc(loop.objective) == auroc
    assert all(module.training for module in loop.objective.modules())
    assert all(torch.equal(values, before[name]) for name, values in loop.objective.state_dict().items())


def test_a_resnet_is_probed_too(make_loop, sets, tmp_path):
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1])
    ResNetModel(config).save_pretrained(tmp_path / "resnet")
    options = {"model_name_or_path": str(tmp_path / "resnet"), "image_size": 32, "objective": "simclr"}
    loop, _ = make_loop(probe_data=sets[True], **options)
    loop.monitor.log.close()
    assert loop.monitor.probe.auroc(loop.objective) > 0.98
    # Statistics of batch norms are those of training, which the probe does not touch.
    assert not loop.objective.encoder.embedder.embedder.normalization.running_mean.any()


def test_the_probe_is_of_the_encoder_as_it_is(make_loop, sets):
    loop, _ = make_loop(probe_data=sets[True])
    loop.monitor.log.close()
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
    loop.monitor.log.close()
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    probes = [(line["step"], line["epoch"]) for line in lines if "probe_auroc" in line]
    assert probes == [(0, 0), (3, 0.5), (6, 1)]
    assert all(0.9 < line["probe_auroc"] <= 1 for line in lines if "probe_auroc" in line)


def test_sets_that_cannot_be_probed_are_refused(make_loop, sets, tmp_path):
    table = pd.read_csv(sets[True])
    table["image"] = sets[True].removesuffix("table.csv") + table["image"]
    table.assign(label=np.linspace(0, 1, len(table))).to_csv(tmp_path / "numbers.csv", index=False)
    with pytest.raises(
        RetFoundError,
        match=r"--probe_data must be a set labelled with classes: .*numbers\.csv: column 'label' holds 160",
    ):
        make_loop(probe_data=str(tmp_path / "numbers.csv"))
    with pytest.raises(RetFoundError, match=r"--probe_data must be a set labelled with classes: .*absent\.csv"):
        make_loop(probe_data=str(tmp_path / "absent.csv"))


def test_previews_show_the_same_images_and_masks_each_time(make_loop, tmp_path):
    loop, reader = make_loop(preview_steps=2, max_steps=4, base_learning_rate=0.5)
    batches = make_loader(reader, loop.objective.draw, loop.order, loop.position, 0, pin_memory=False)
    first = loop.monitor.previews.write(loop.objective, 0, torch.device("cpu"))
    again = loop.monitor.previews.write(loop.objective, 0, torch.device("cpu"))
    assert torch.equal(first, again)
    loop.train(iter(batches))
    loop.monitor.log.close()
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
    other = Previews(reader, loop.objective, tmp_path / "other", loop.args.seed)
    assert torch.equal(other.draws["noise"], loop.monitor.previews.draws["noise"])
    assert torch.equal(other.images, reader.read([0, 50, 101, 152])[0])
