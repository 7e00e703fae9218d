"""Classifier that a run starts from: weights of the folder, a head for the labels, what the targets decide."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torchvision.ops import StochasticDepth
from transformers import ViTMAEForPreTraining

from retfound_hf import RetFoundForImageClassification
from retfound_hf.errors import BadArgumentError, BadModelError
from retfound_hf.finetuning.methods import build_classifier, label_options, loss_options
from retfound_hf.finetuning.trainer import TargetScale


def labels(names=("a", "b"), **options):
    return {
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "label2id": {name: index for index, name in enumerate(names)},
        "problem_type": "single_label_classification",
        **options,
    }


def test_encoder_comes_from_the_folder_and_the_head_is_fresh(encoder_folder):
    model = build_classifier(str(encoder_folder), None, labels(tuple("abcdefgh")), drop_path=0.2)
    stored = load_file(encoder_folder / "model.safetensors")
    own = model.state_dict()
    encoder = [name for name in own if name.startswith("vit.")]
    assert encoder
    assert all(torch.equal(own[name], stored[name]) for name in encoder)
    assert model.classifier.weight.std().item() == pytest.approx(2e-5, rel=0.2)
    assert not model.classifier.bias.any()
    assert (model.fc_norm.weight == 1).all()
    assert not model.fc_norm.bias.any()
    assert model.config.id2label[7] == "h"
    assert model.config.model_type == "retfound"


def test_weights_of_a_stock_vit_mae_are_taken_over(stock_folder):
    folder = stock_folder("vit_mae")
    source = ViTMAEForPreTraining.from_pretrained(folder)
    model = build_classifier(str(folder), None, labels())
    assert isinstance(model, RetFoundForImageClassification)
    assert model.config.layer_norm_eps == source.config.layer_norm_eps
    own = dict(model.vit.named_parameters())
    theirs = dict(source.vit.named_parameters())
    assert torch.equal(own["layernorm.weight"], theirs["layernorm.weight"])
    # Compared by what they compute, since the two call their blocks differently: no masking, raster order.
    source.eval()
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    source.config.mask_ratio = 0.0
    noise = torch.arange(16.0).expand(2, -1)
    with torch.no_grad():
        expected = source.vit(pixels, noise=noise).last_hidden_state
        found = model.vit.eval()(pixels).last_hidden_state
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["vit_mae", "vit", "dinov2", "dinov3_vit"])
def test_every_start_has_the_same_head(stock_folder, kind):
    """The paper varies the weights alone: `fc_norm` of the mean of the patches, one layer that starts near zero."""
    model = build_classifier(str(stock_folder(kind)), None, labels(("a", "b", "c")))
    assert (model.fc_norm.weight == 1).all()
    assert model.fc_norm.eps == 1e-6 or kind in ("vit", "vit_mae")  # these keep the epsilon of their weights
    assert model.classifier.weight.shape == (3, 32)
    assert 1e-5 < model.classifier.weight.std() < 4e-5
    assert model.config.problem_type == "single_label_classification"
    with torch.no_grad():
        model.classifier.weight.normal_(generator=torch.Generator().manual_seed(0))
        pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
        outputs = model.eval().vit(pixels)
        expected = model.classifier(model.fc_norm(outputs.patch_mean))
        assert torch.equal(model(pixels).logits, expected)


def test_a_preset_with_an_impossible_size_is_refused():
    with pytest.raises(BadArgumentError) as error:
        build_classifier(None, "retfound-tiny", labels(), image_size=50)
    assert (error.value.field, error.value.value) == ("image_size", 50)


def test_drop_path_reaches_the_blocks(encoder_folder, stock_folder):
    for folder in (encoder_folder, stock_folder("vit_mae"), stock_folder("vit")):
        model = build_classifier(str(folder), None, labels(), drop_path=0.2)
        rates = [getattr(layer.drop_path, "p", 0.0) for layer in model.vit.encoder.layer]
        assert rates == pytest.approx([0.0, 0.1, 0.2])
        assert isinstance(model.vit.encoder.layer[2].drop_path, StochasticDepth)
    for kind in ("dinov2", "dinov3_vit"):  # one rate for all blocks in the stock classes
        model = build_classifier(str(stock_folder(kind)), None, labels(), drop_path=0.2)
        rates = [getattr(block.drop_path, "p", 0.0) for block in model.modules() if hasattr(block, "drop_path")]
        assert rates == pytest.approx([0.0, 0.1, 0.2])


@pytest.fixture
def trained_folder(encoder_folder, tmp_path):
    """A classifier of a and b whose head is no longer near zero, with the norm applied twice."""
    model = build_classifier(str(encoder_folder), None, labels())
    with torch.no_grad():
        model.classifier.weight.fill_(0.5)
        model.fc_norm.weight.fill_(2.0)
    model.config.head_norm = "double"
    model.save_pretrained(tmp_path / "trained")
    return tmp_path / "trained"


def test_a_head_of_the_same_classes_is_kept(trained_folder):
    model = build_classifier(str(trained_folder), None, labels())
    assert (model.classifier.weight == 0.5).all()
    assert (model.fc_norm.weight == 2).all()
    assert model.config.head_norm == "double"


@pytest.mark.parametrize("names", [("b", "a"), ("a", "c"), ("a", "b", "c")])
def test_a_head_of_other_classes_is_replaced(trained_folder, names):
    model = build_classifier(str(trained_folder), None, labels(names))
    assert model.classifier.weight.abs().max() < 1e-3
    assert (model.fc_norm.weight == 1).all()
    assert model.config.head_norm == "single"
    assert model.config.id2label == dict(enumerate(names))


def test_a_folder_that_lacks_weights_is_refused(encoder_folder, tmp_path):
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((encoder_folder / name).read_bytes())
    tensors = load_file(encoder_folder / "model.safetensors")
    del tensors["vit.encoder.layer.1.intermediate.dense.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadModelError):
        build_classifier(str(tmp_path), None, labels())


def test_an_adapter_is_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(BadModelError):
        build_classifier(str(tmp_path), None, labels())


def test_what_is_no_model_is_refused(tmp_path):
    for name in (tmp_path, tmp_path / "absent"):
        with pytest.raises(BadModelError) as error:
            build_classifier(str(name), None, labels())
        assert error.value.model == str(name)


SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"


def test_labels_of_the_configuration():
    assert label_options(("mild", "severe"), SINGLE) == {
        "num_labels": 2,
        "id2label": {0: "mild", 1: "severe"},
        "label2id": {"mild": 0, "severe": 1},
        "problem_type": SINGLE,
        "calibration_temperature": 1.0,
        "calibration_slope": None,
        "calibration_intercept": None,
    }


def weights(targets, kind, classes):
    return loss_options(targets, kind, classes, "balanced", 0.1)["class_weights"]


def test_balanced_weights_by_hand():
    assert weights(np.array([0] * 6 + [1] * 3 + [2]), SINGLE, 3) == pytest.approx([10 / 18, 10 / 9, 10 / 3])
    targets = np.array([[1, 0], [1, 0], [1, 1], [0, 0], [0, 0]], np.float32)
    assert weights(targets, MULTI, 2) == pytest.approx([2 / 3, 4])


def test_balanced_weights_equal_those_of_scikit_learn():
    from sklearn.utils.class_weight import compute_class_weight

    targets = np.random.default_rng(0).choice(4, 200, p=[0.6, 0.2, 0.15, 0.05])
    expected = compute_class_weight("balanced", classes=np.arange(4), y=targets)
    assert weights(targets, SINGLE, 4) == pytest.approx(expected)


def test_balanced_weights_stay_finite_without_a_class():
    assert np.isfinite(weights(np.array([0, 0, 1]), SINGLE, 3)).all()
    assert np.isfinite(weights(np.zeros((4, 1), np.float32), MULTI, 1)).all()


@pytest.mark.parametrize(("kind", "smoothing"), [(SINGLE, 0.1), (MULTI, 0.1), (REGRESSION, 0.0)])
def test_numbers_are_not_smoothed(kind, smoothing):
    found = loss_options(np.ones((4, 1), int), kind, 1, "none", 0.1)
    assert found == {"class_weights": None, "label_smoothing": smoothing}


def test_deviations_of_the_targets():
    assert TargetScale.of(np.array([10, 20, 30, 40], np.float32)).scale == pytest.approx([np.std([10, 20, 30, 40])])
    assert TargetScale.of(np.full((3, 2), 5, np.float32)).scale.tolist() == [1.0, 1.0]


def test_a_regression_starts_at_the_mean(job, table_set):
    made = job(data=str(table_set), label_columns=["level"], problem_type="regression")
    targets = made.prepared.labelled.targets("train")
    assert made.classifier.model.classifier.bias.item() == pytest.approx(targets.mean(), rel=1e-6)
