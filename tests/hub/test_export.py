"""Exports against the model that they are made from, in the libraries that they are made for."""

import json
import re

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from torchvision.transforms.v2 import InterpolationMode, functional
from transformers import AutoConfig, AutoImageProcessor

from retfound_hf import RetFoundError, RetFoundImageProcessor, RetFoundModel
from retfound_hf.errors import BadModelError, OutputError
from retfound_hf.hub.export import check_equal, export, main, timm_data
from retfound_hf.images.field_of_view import crop_field_of_view
from retfound_hf.models.loading import load_classifier


@pytest.fixture
def saved(new_classifier, tmp_path):
    """Saves a classifier with its image processor."""

    def make(**options):
        model = new_classifier(id2label={0: "a", 1: "b", 2: "c"}, **options)
        model.save_pretrained(tmp_path / "model")
        RetFoundImageProcessor.for_image_size(64).save_pretrained(tmp_path / "model")
        return model, str(tmp_path / "model")

    return make


def pixels(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, 64, 64, generator=torch.Generator().manual_seed(batch))


def in_timm(folder) -> torch.nn.Module:
    arguments = json.loads((folder / "timm.json").read_text())["create_model"]
    assert arguments["model_name"] == "vit_large_patch16_224"
    model = timm.create_model(**arguments)
    model.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    return model.eval()


def in_onnx(folder, images: torch.Tensor) -> torch.Tensor:
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"pixel_values": images.numpy()})
    return torch.from_numpy(found)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "form"), [("base", "timm"), ("base", "onnx"), ("classifier", "timm"), ("adapter", "timm")]
)
def test_features_and_logits_in_other_libraries_equal_ours(workshop, tmp_path, name, form):
    """timm loads the weights strictly; an adapter is merged on the way."""
    out, folder = export(str(workshop / name), tmp_path / "out", form), str(workshop / name)
    if name == "base":
        expected = RetFoundModel.from_pretrained(folder).eval()(pixels()).pooler_output
    else:
        expected = load_classifier(folder)(pixels()).logits
    found = in_timm(out)(pixels()) if form == "timm" else in_onnx(out, pixels())
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_a_norm_applied_twice_is_not_for_timm(saved, tmp_path):
    _, folder = saved(head_norm="double")
    with pytest.raises(BadModelError):
        export(folder, tmp_path / "out", "timm")
    assert not (tmp_path / "out").exists()


@torch.no_grad()
def test_onnx_gives_equal_logits_for_any_batch(saved, tmp_path, capsys):
    model, folder = saved(head_norm="double", problem_type="multi_label_classification")
    main([folder, "--format", "onnx", "--output_dir", str(tmp_path / "out")])
    for batch in (1, 2, 5):
        torch.testing.assert_close(
            in_onnx(tmp_path / "out", pixels(batch)), model(pixels(batch)).logits, atol=1e-4, rtol=0
        )
    assert json.loads((tmp_path / "out" / "run.json").read_text())["command"] == "export"
    output = json.loads((tmp_path / "out" / "preprocessing.json").read_text())["output"]
    assert output["labels"] == ["a", "b", "c"] and output["activation"] == "sigmoid"
    assert "model.onnx" in capsys.readouterr().out
    loaded = AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert loaded.to_dict() == AutoImageProcessor.from_pretrained(folder).to_dict()
    config = AutoConfig.from_pretrained(tmp_path / "out")  # of a stock type, for optimum
    assert config.model_type == "vit" and config.id2label == {0: "a", 1: "b", 2: "c"} and config.image_size == 64
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    steps = json.loads(session.get_modelmeta().custom_metadata_map["preprocessing"])
    assert steps == json.loads((tmp_path / "out" / "preprocessing.json").read_text())


def test_preprocessing_followed_by_hand_gives_the_processor_s_pixels(saved, tmp_path, image):
    _, folder = saved()
    out = export(folder, tmp_path / "out", "timm")
    steps = json.loads((out / "preprocessing.json").read_text())["steps"]
    names = ["to_rgb", "crop_to_field_of_view", "resize", "center_crop", "scale", "normalize"]
    assert [step["step"] for step in steps] == names
    _, _, resize, crop, scale, normalize = steps
    cropped = crop_field_of_view(Image.open(image).convert("RGB"))
    values = torch.from_numpy(np.array(cropped)).permute(2, 0, 1)
    values = functional.resize(values, [resize["height"], resize["width"]], InterpolationMode.BICUBIC, antialias=True)
    values = functional.center_crop(values, [crop["height"], crop["width"]]).double() * scale["factor"]
    mean, std = (torch.tensor(normalize[name])[:, None, None] for name in ("mean", "std"))
    expected = RetFoundImageProcessor.from_pretrained(folder)(image, return_tensors="pt").pixel_values[0]
    torch.testing.assert_close((values - mean) / std, expected.double(), atol=1e-5, rtol=0)


@torch.no_grad()
def test_timm_s_own_tools_make_the_right_input(saved, image, tmp_path):
    """The folder alone, and the call of `timm.json`: probabilities differ by the rounding of two resizers."""
    model, folder = saved()
    out = export(folder, tmp_path / "out", "timm")
    picture = Image.open(image).convert("RGB")
    expected = model(RetFoundImageProcessor.from_pretrained(folder)(picture, return_tensors="pt").pixel_values).logits
    arguments = json.loads((out / "timm.json").read_text())["create_model"]
    networks = (
        timm.create_model(f"local-dir:{out}", pretrained=True),
        timm.create_model(**arguments, checkpoint_path=str(out / "model.safetensors")),
    )
    for network in networks:
        transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network))
        found = network.eval()(transform(crop_field_of_view(picture))[None])
        torch.testing.assert_close(found.softmax(-1), expected.softmax(-1), atol=5e-3, rtol=0)
        assert list(network.pretrained_cfg["label_names"]) == ["a", "b", "c"]


@pytest.mark.parametrize(
    "options",
    [{"size": 224}, {"size": 32}, {"size": 96}, {"size": 300}, {"size": 64, "crop_pct": 0.8},
     {"size": {"shortest_edge": 64}}, {"size": 64, "do_center_crop": False}, {"size": 64, "image_mean": [0.5] * 3},
     {"size": 64, "rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3}],
)  # fmt: skip
def test_timm_s_transform_is_the_processor_s(new_classifier, image, options):
    processor = RetFoundImageProcessor(do_fundus_crop=False, **options)
    data = timm_data(new_classifier(), True, processor)
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, pretrained_cfg=data))
    picture = Image.open(image).convert("RGB").resize((301, 200))
    expected, found = processor(picture, return_tensors="pt").pixel_values[0], transform(picture)
    assert found.shape == expected.shape
    assert (found - expected).abs().mean() < 0.01  # of standardised values: a level of 255 is 0.017


def test_the_card_says_what_the_format_cannot_carry_and_its_snippet_runs(saved, image, tmp_path, monkeypatch):
    monkeypatch.chdir(image.parent)
    _, folder = saved()
    for format, output in (("timm", "logits"), ("onnx", "logits")):
        export(folder, image.parent / format, format)
        card = (image.parent / format / "README.md").read_text()
        assert "not crop" in card and "field of view" in card and "a, b, c" in card
        (code,) = re.findall(r"```python\n(.*?)```", card, re.S)
        names: dict = {}
        exec(code.replace("image.jpg", image.name), names)
        assert tuple(names[output].shape) == (1, 3)


@pytest.mark.parametrize("found", [torch.tensor([1.001]), torch.tensor([float("nan")])])
def test_an_export_that_differs_is_refused(found):
    with pytest.raises(RetFoundError):
        check_equal(torch.tensor([1.0]), found, "ONNX")


def test_an_existing_folder_is_not_written_over(saved, tmp_path):
    _, folder = saved()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").touch()
    with pytest.raises(OutputError):
        export(folder, tmp_path / "out", "timm")
