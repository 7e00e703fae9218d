"""Exports against the model that they are made from, in the libraries that they are made for."""

import json

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from torchvision.transforms.v2 import InterpolationMode, functional

from retfound_hf import RetFoundError, RetFoundImageProcessor, RetFoundModel
from retfound_hf.errors import BadModelError, OutputError
from retfound_hf.hub.export import check_equal, export, main
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
    assert "out: model.onnx" in capsys.readouterr().out


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
