"""The command on folders, tables, single images and shards: what it writes, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from retfound_hf.cli import main as cli
from retfound_hf.errors import BadArgumentError, BadDataError, OutputError, RetFoundError, UnreadableImageError
from retfound_hf.explanation.explain import explain, main, paint
from retfound_hf.explanation.relevance import relevance
from retfound_hf.images.reading import read_image
from retfound_hf.models.loading import load_autoencoder, load_classifier, load_processor

CLASSES = ("mild", "none", "severe")


@pytest.fixture(scope="module")
def model_folder(classifier, processor, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("classifier")
    classifier().save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def pretrained_folder(autoencoder, processor, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("autoencoder")
    autoencoder(norm_pix_loss=True).save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def pictures(tmp_path) -> Path:
    """Five images in class folders; the second is larger, the third gray."""
    folder = tmp_path / "images"
    for index in range(5):
        path = folder / CLASSES[index % 3] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        size = (90, 120) if index == 1 else (44, 40)
        pixels = np.random.default_rng(index).integers(0, 256, (*size, 3), dtype=np.uint8)
        image = Image.fromarray(pixels)
        (image.convert("L") if index == 2 else image).save(path)
    return folder


def run(model: str, data: Path | str, out: Path, *flags: str) -> pd.DataFrame:
    words = ["--model_name_or_path", model, "--data", str(data), "--output_dir", str(out), *flags]
    main([*words, "--dataloader_num_workers", "0"])
    return pd.read_csv(out / "maps.csv")


def test_a_folder_of_images(model_folder, pictures, tmp_path, capsys):
    out = tmp_path / "out"
    table = run(model_folder, pictures, out, "--per_device_eval_batch_size", "2")
    assert "explain: 100%" in capsys.readouterr().err  # the bar, in a log file too
    assert {path.name for path in out.iterdir()} == {
        "pictures", "arrays", "maps.csv", "maps.npz", "contact_sheet.png", "run.json",
    }  # fmt: skip
    assert table["id"].tolist() == ["mild/0.png", "mild/3.png", "none/1.png", "none/4.png", "severe/2.png"]
    model, processor = load_classifier(model_folder), load_processor(model_folder)
    stored = np.load(out / "maps.npz")
    assert stored["patches"].shape == (5, 4, 4) and stored["id"].tolist() == table["id"].tolist()
    for index, row in table.iterrows():
        image = read_image(pictures / row["id"])
        pixels = processor(image, return_tensors="pt")["pixel_values"]
        expected = relevance(model, pixels)
        np.testing.assert_allclose(stored["patches"][index], expected.patches[0], rtol=1e-3, atol=1e-8)
        assert row["class"] == row["prediction"] == CLASSES[expected.targets[0]]
        assert row["probability"] == pytest.approx(expected.logits[0].softmax(0).max().item(), abs=1e-4)
        array, picture = np.load(out / row["array"]), Image.open(out / row["picture"])
        assert array.shape == (image.height, image.width)
        assert picture.height > image.height and picture.width >= image.width
        window = processor.input_window(image)
        placed = window.place(stored["patches"][index], image.size)
        assert array.dtype == np.float32 and array.max() > 0
        np.testing.assert_allclose(array, placed, rtol=1e-6, atol=0)
        assert stored["window"][index].tolist() == [window.left, window.top, window.right, window.bottom]
        assert stored["image_size"][index].tolist() == list(image.size)
    record = json.loads((out / "run.json").read_text())
    assert record["images"] == 5 and record["arguments"]["method"] == "relevance" and record["rejected_images"] == []


def test_maps_of_a_head_with_small_logits_keep_their_levels(classifier, processor, pictures, tmp_path):
    """A head that calibration divided by 20 says nearly the same on another scale, in as many numbers."""
    counts, maps = [], []
    for divisor in (1, 20):
        model = classifier()
        with torch.no_grad():
            model.classifier.weight.div_(divisor)
            model.classifier.bias.div_(divisor)
        model.save_pretrained(tmp_path / f"{divisor}")
        processor.save_pretrained(tmp_path / f"{divisor}")
        table = run(str(tmp_path / f"{divisor}"), pictures / "none" / "1.png", tmp_path / f"out-{divisor}")
        maps.append(np.load(tmp_path / f"out-{divisor}" / table["array"][0]))
        counts.append(len(np.unique(maps[-1])))
    assert counts[0] > 1000 and min(counts) > 0.95 * counts[0]
    assert np.corrcoef(maps[0].ravel(), maps[1].ravel())[0, 1] > 0.999
    assert 20 * maps[1].max() == pytest.approx(maps[0].max(), rel=0.05)  # products of two layers shrink by 400


def test_pictures_are_reduced_and_maps_with_them(model_folder, pictures, tmp_path):
    table = run(model_folder, pictures / "none", tmp_path / "out", "--picture_size", "60")
    assert table["id"].tolist() == ["1.png", "4.png"]
    assert np.load(tmp_path / "out" / table["array"][0]).shape == (45, 60)  # of 90 x 120


@pytest.mark.parametrize("method", ["rollout", "integrated_gradients"])
def test_other_methods_and_a_named_class(model_folder, pictures, tmp_path, method):
    table = run(model_folder, pictures, tmp_path / "out", "--method", method, "--target", "severe", "--steps", "4")
    assert (table["class"] == "severe").all() and len(table) == 5
    image = read_image(pictures / table["id"][0])
    pixels = load_processor(model_folder)(image, return_tensors="pt")["pixel_values"]
    expected = relevance(load_classifier(model_folder), pixels, "severe", method, steps=4).patches[0]
    np.testing.assert_allclose(np.load(tmp_path / "out" / "maps.npz")["patches"][0], expected, rtol=1e-3, atol=1e-5)


def test_each_image_by_its_own_label(model_folder, pictures, tmp_path):
    table = run(model_folder, pictures, tmp_path / "out", "--target", "label")
    assert table["class"].tolist() == table["label"].tolist() == ["mild", "mild", "none", "none", "severe"]
    labels = pd.DataFrame({"image": table["id"], "grade": ["none", "severe", "none", "mild", "mild"]})
    labels.assign(split=["train", "test", "test", "train", "val"]).to_csv(pictures / "table.csv", index=False)
    flags = ["--target", "label", "--label_column", "grade", "--split", "test"]
    table = run(model_folder, pictures / "table.csv", tmp_path / "split", *flags)
    assert table[["id", "class"]].to_numpy().tolist() == [["mild/3.png", "severe"], ["none/1.png", "none"]]


def test_one_image_and_the_first_of_many(model_folder, pictures, tmp_path):
    assert run(model_folder, pictures / "mild" / "3.png", tmp_path / "one")["id"].tolist() == ["3.png"]
    assert len(run(model_folder, pictures, tmp_path / "few", "--max_images", "2")) == 2


def test_regression_and_several_labels(classifier, processor, pictures, tmp_path):
    for kind, names in (("regression", ["age"]), ("multi_label_classification", ["a", "b"])):
        labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
        model = classifier(problem_type=kind, **labels)
        model.save_pretrained(tmp_path / kind)
        processor.save_pretrained(tmp_path / kind)
        table = run(str(tmp_path / kind), pictures, tmp_path / f"out-{kind}")
        image = read_image(pictures / table["id"][0])
        with torch.no_grad():
            logits = model(processor(image, return_tensors="pt")["pixel_values"]).logits[0]
        if kind == "regression":
            assert table["value"][0] == pytest.approx(logits[0].item(), abs=1e-4) and "probability" not in table
        else:
            assert table["probability"][0] == pytest.approx(logits.sigmoid().max().item(), abs=1e-4)
            assert table["class"][0] == names[logits.argmax()]
    with pytest.raises(BadArgumentError) as error:
        run(str(tmp_path / "multi_label_classification"), pictures, tmp_path / "out", "--target", "label")
    assert error.value.field == "target" and error.value.accepted == ("a", "b")


def test_bad_images(model_folder, pictures, tmp_path, capsys):
    (pictures / "none" / "1.png").write_bytes(b"no image")
    with pytest.raises(UnreadableImageError) as error:
        run(model_folder, pictures, tmp_path / "out")
    assert error.value.path == "none/1.png"
    assert not (tmp_path / "out").exists()
    table = run(model_folder, pictures, tmp_path / "out", "--on_bad_image", "skip")
    assert table["id"].tolist() == ["mild/0.png", "mild/3.png", "none/4.png", "severe/2.png"]
    assert json.loads((tmp_path / "out" / "run.json").read_text())["rejected_images"][0][0] == "none/1.png"
    for path in pictures.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(BadDataError):
        run(model_folder, pictures, tmp_path / "none", "--on_bad_image", "skip")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith((".", "none"))] == []


def test_reconstructions(pretrained_folder, pictures, tmp_path):
    flags = ["--method", "reconstruction", "--mask_ratio", "0.5", "--seed", "3"]
    table = run(pretrained_folder, pictures, tmp_path / "out", *flags)
    assert (table["hidden"] == 0.5).all() and (table["loss"] > 0).all()
    stored = np.load(tmp_path / "out" / "maps.npz")
    assert stored["mask"].sum(axis=(1, 2)).tolist() == [8] * 5
    assert (stored["error"][~stored["mask"]] == 0).all()
    np.testing.assert_allclose(stored["error"].sum(axis=(1, 2)) / 8, table["loss"], rtol=1e-4)
    again = run(pretrained_folder, pictures, tmp_path / "alone", *flags, "--per_device_eval_batch_size", "1")
    pd.testing.assert_frame_equal(again, table)
    other = run(pretrained_folder, pictures, tmp_path / "seed", *flags[:-1], "4")
    assert not np.array_equal(np.load(tmp_path / "seed" / "maps.npz")["mask"], stored["mask"])
    assert not np.allclose(other["loss"], table["loss"])
    picture = Image.open(tmp_path / "out" / table["picture"][0])
    assert picture.width > 4 * 32


def test_the_mask_depends_on_the_image_and_the_seed_alone(autoencoder, processor, images):
    model, pixels = autoencoder(mask_ratio=0.75), images(3)
    together = paint(model, pixels, ["a", "b", "c"], processor)
    alone = paint(model, pixels[1:2], ["b"], processor)
    assert torch.equal(alone.mask[0], together.mask[1]) and together.mask.sum().item() == 36
    assert not torch.equal(together.mask[0], together.mask[1])
    assert model.config.mask_ratio == 0.75
    assert paint(model, pixels, ["a", "b", "c"], processor, mask_ratio=0.5).mask.sum().item() == 24
    with pytest.raises(BadArgumentError):
        paint(model, pixels, ["a", "b", "c"], processor, mask_ratio=1.0)


def test_folders_without_decoder_are_refused(model_folder, pictures, tmp_path, stock):
    with pytest.raises(RetFoundError):
        run(model_folder, pictures, tmp_path / "out", "--method", "reconstruction")
    stock("dinov2").save_pretrained(tmp_path / "dinov2")
    with pytest.raises(RetFoundError):
        run(str(tmp_path / "dinov2"), pictures, tmp_path / "out", "--method", "reconstruction")


def test_an_autoencoder_without_trained_decoder_is_refused(pretrained_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "cut"
    load_autoencoder(pretrained_folder).save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in tensors.items() if not name.startswith("decoder.decoder_layers")}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RetFoundError):
        load_autoencoder(str(folder))


@pytest.mark.parametrize(
    "flags, field",
    [
        (["--target", "sever"], "target"),
        (["--mask_ratio", "0.5"], "mask_ratio"),
        (["--method", "reconstruction", "--target", "mild"], "target"),
        (["--method", "reconstruction", "--mask_ratio", "1"], "mask_ratio"),
        (["--opacity", "2"], "opacity"),
        (["--steps", "0"], "steps"),
    ],
)
def test_bad_arguments_are_named(model_folder, pictures, tmp_path, flags, field):
    with pytest.raises(BadArgumentError) as error:
        run(model_folder, pictures, tmp_path / "out", *flags)
    assert error.value.field == field and not (tmp_path / "out").exists()


@pytest.mark.parametrize("flags", [["--method", "relevence"], ["--split", "test"]])
def test_unknown_methods_and_splits_are_refused(model_folder, pictures, tmp_path, flags):
    (pictures / "train").mkdir()
    (pictures / "mild").rename(pictures / "train" / "mild")
    with pytest.raises(RetFoundError):
        run(model_folder, pictures, tmp_path / "out", *flags)
    assert not (tmp_path / "out").exists()


def test_a_filled_folder_is_kept(model_folder, pictures, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(OutputError):
        run(model_folder, pictures, tmp_path / "out")
    assert cli(["explain", "--model_name_or_path", model_folder, "--data", "nowhere", "--output_dir", "x"]) == 2


def test_from_python(model_folder, pretrained_folder, pictures, tmp_path, capsys):
    """The same maps as the command's, for one image, several, and a folder; nothing is printed."""
    expected = run(model_folder, pictures, tmp_path / "command", "--target", "severe")
    patches = np.load(tmp_path / "command" / "maps.npz")["patches"]
    capsys.readouterr()
    found = explain(model_folder, pictures, target="severe", output_dir=tmp_path / "out", dataloader_num_workers=0)
    assert [one.opened.id for one in found] == expected["id"].tolist() and (tmp_path / "out" / "maps.csv").is_file()
    np.testing.assert_allclose(np.stack([one.patches for one in found]), patches, rtol=1e-3, atol=1e-8)
    path = pictures / expected["id"][0]
    one = explain(model_folder, path, target="severe")
    assert one.target == "severe" and one.score == pytest.approx(expected["probability"][0], abs=1e-4)
    np.testing.assert_allclose(one.patches, patches[0], rtol=1e-3, atol=1e-8)
    assert one.overlay().size == one.opened.picture.size == Image.open(path).size
    several = explain(model_folder, [path, Image.open(path)], dataloader_num_workers=0)
    assert np.allclose(several[0].patches, several[1].patches)
    painted = explain(pretrained_folder, path, method="reconstruction", mask_ratio=0.5)
    assert painted.loss > 0 and painted.mask.sum() == 8
    with pytest.raises(TypeError):
        explain(model_folder, path, opacty=1)
    assert capsys.readouterr().out == ""
