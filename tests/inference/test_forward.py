"""Batched passes: order, precision and shapes do not depend on how the images are batched."""

import numpy as np
import pytest
import torch
from PIL import Image

from retfound_hf import RetFoundImageProcessor
from retfound_hf.images.reading import find_images
from retfound_hf.inference.predict import (
    Classifier,
    Collator,
    EvaluationPixels,
    PreparedSet,
    SourceSet,
    features,
    forward_here,
    head_inputs,
    pooled,
    to_scores,
)
from retfound_hf.models.loading import load_classifier, load_encoder, load_processor


@pytest.fixture
def prepared():
    generator = np.random.default_rng(0)
    return [{"image": Image.fromarray(generator.integers(0, 256, (37, 37, 3), dtype=np.uint8))} for _ in range(11)]


def test_batches_do_not_change_the_result(classifier_folder, prepared):
    model, processor = load_classifier(str(classifier_folder)), load_processor(str(classifier_folder))
    whole = Classifier(model, processor).logits(prepared, batch_size=11)
    assert whole.shape == (11, 3)
    assert whole.dtype == np.float32
    parts = Classifier(model, processor).logits(prepared, batch_size=4, num_workers=1)
    assert parts == pytest.approx(whole, abs=1e-5)
    one = Classifier(model, processor).logits(prepared[7:8])
    assert one == pytest.approx(whole[7:8], abs=1e-5)


def test_logits_and_features_are_the_models_own(classifier_folder, encoder_folder, prepared):
    model, processor = load_classifier(str(classifier_folder)), load_processor(str(classifier_folder))
    pixels = processor(
        [item["image"] for item in prepared], do_fundus_crop=False, do_resize=False, return_tensors="pt"
    )["pixel_values"]
    with torch.no_grad():
        logits = model(pixels).logits.numpy()
        normed = model.fc_norm(model.vit(pixels).patch_mean).numpy()
    assert Classifier(model, processor).logits(prepared) == pytest.approx(logits, abs=1e-5)
    assert head_inputs(model, prepared, processor, batch_size=3) == pytest.approx(normed, abs=1e-5)
    assert not model.classifier._forward_pre_hooks
    encoder = load_encoder(str(encoder_folder))
    with torch.no_grad():
        expected = encoder(pixels).pooler_output.numpy()
    assert features(encoder, prepared, processor) == pytest.approx(expected, abs=1e-5)


def test_training_mode_is_left_as_it_was(classifier_folder, prepared):
    model, processor = load_classifier(str(classifier_folder)), load_processor(str(classifier_folder))
    model.train()
    Classifier(model, processor).logits(prepared)
    assert model.training


def test_half_precision_is_near(classifier_folder, prepared):
    model, processor = load_classifier(str(classifier_folder)), load_processor(str(classifier_folder))
    full = Classifier(model, processor).logits(prepared)
    half = Classifier(model, processor).logits(prepared, precision="bf16")
    assert half.dtype == np.float32
    assert half == pytest.approx(full, abs=0.1)
    assert not np.array_equal(half, full)


def test_sources_are_prepared_as_the_processor_does(images_folder):
    processor = RetFoundImageProcessor.for_image_size(32)
    files = [str(path) for path in find_images(images_folder)]
    sources = SourceSet(files, processor)
    batch = Collator(EvaluationPixels(processor))([sources[index] for index in range(len(files))])
    expected = processor(files, return_tensors="pt")["pixel_values"]
    assert torch.equal(batch["pixel_values"], expected)
    assert batch["reason"] == [""] * len(files)


def test_unreadable_sources_come_with_the_reason(encoder_folder, tmp_path, images_folder):
    (tmp_path / "bad.png").write_bytes(b"no image")
    processor = load_processor(str(encoder_folder))
    sources = SourceSet([str(tmp_path / "bad.png"), str(find_images(images_folder)[0]), b"nothing"], processor)
    vectors, reasons = forward_here(load_encoder(str(encoder_folder)), sources, processor, pooled)
    assert vectors.shape == (3, 32)
    assert [bool(reason) for reason in reasons] == [True, False, True]
    assert "bad.png" in reasons[0]


def test_scores():
    logits = np.array([[0.0, np.log(3)], [5.0, 5.0]], np.float32)
    assert to_scores(logits, "single_label_classification") == pytest.approx(np.array([[0.25, 0.75], [0.5, 0.5]]))
    assert to_scores(logits, "multi_label_classification")[0] == pytest.approx([0.5, 0.75])
    assert to_scores(logits, "regression") is logits


def test_targets_must_fit_the_images(prepared):
    with pytest.raises(ValueError, match="3 targets for 11 images"):
        PreparedSet(prepared, np.zeros(3))


def test_labels_are_batched_with_their_images(prepared):
    processor = RetFoundImageProcessor.for_image_size(32)
    items = PreparedSet(prepared, np.arange(11))
    batch = Collator(EvaluationPixels(processor))([items[index] for index in (3, 1, 9)])
    assert batch["labels"].tolist() == [3, 1, 9]
    assert batch["labels"].dtype == torch.int64
