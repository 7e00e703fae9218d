"""Batched passes: order, precision and shapes do not depend on how the images are batched."""

import logging

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from retfound_hf import RetFoundImageProcessor
from retfound_hf.errors import BadArgumentError, BadDataError
from retfound_hf.images.reading import find_images
from retfound_hf.images.synthetic import CLASSES, draw_patient, render
from retfound_hf.inference.predict import (
    Collator,
    EvaluationPixels,
    PreparedSet,
    SourceSet,
    features,
    forward_here,
    head_inputs,
    load_classifier,
    pooled,
    to_scores,
    warn_of_modality,
)
from retfound_hf.models.loading import load_encoder, load_processor


@pytest.fixture
def prepared():
    generator = np.random.default_rng(0)
    return [{"image": Image.fromarray(generator.integers(0, 256, (37, 37, 3), dtype=np.uint8))} for _ in range(11)]


def test_batches_do_not_change_the_result(classifier_folder, prepared):
    classifier = load_classifier(classifier_folder)
    whole = classifier.logits(prepared, batch_size=11)
    assert whole.shape == (11, 3)
    assert whole.dtype == np.float32
    parts = classifier.logits(prepared, batch_size=4, num_workers=1)
    assert parts == pytest.approx(whole, abs=1e-5)
    one = classifier.logits(prepared[7:8])
    assert one == pytest.approx(whole[7:8], abs=1e-5)


def test_logits_and_features_are_the_models_own(classifier_folder, encoder_folder, prepared):
    classifier = load_classifier(classifier_folder)
    model, processor = classifier.model, classifier.processor
    pixels = processor(
        [item["image"] for item in prepared], do_fundus_crop=False, do_resize=False, return_tensors="pt"
    )["pixel_values"]
    with torch.no_grad():
        logits = model(pixels).logits.numpy()
        normed = model.fc_norm(model.vit(pixels).patch_mean).numpy()
    assert classifier.logits(prepared) == pytest.approx(logits, abs=1e-5)
    assert head_inputs(model, prepared, processor, batch_size=3) == pytest.approx(normed, abs=1e-5)
    assert not model.classifier._forward_pre_hooks
    encoder = load_encoder(str(encoder_folder))
    with torch.no_grad():
        expected = encoder(pixels).pooler_output.numpy()
    assert features(encoder, prepared, processor) == pytest.approx(expected, abs=1e-5)


def test_training_mode_is_left_as_it_was(classifier_folder, prepared):
    classifier = load_classifier(classifier_folder)
    model = classifier.model
    model.train()
    classifier.logits(prepared)
    assert model.training


def test_half_precision_is_near(classifier_folder, prepared):
    classifier = load_classifier(classifier_folder)
    full = classifier.logits(prepared)
    half = classifier.logits(prepared, precision="bf16")
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
    assert to_scores(logits, "regression") == pytest.approx(logits)


def test_targets_must_fit_the_images(prepared):
    with pytest.raises(ValueError):
        PreparedSet(prepared, np.zeros(3))


def test_labels_are_batched_with_their_images(prepared):
    processor = RetFoundImageProcessor.for_image_size(32)
    items = PreparedSet(prepared, np.arange(11))
    batch = Collator(EvaluationPixels(processor))([items[index] for index in (3, 1, 9)])
    assert batch["labels"].tolist() == [3, 1, 9]
    assert batch["labels"].dtype == torch.int64


def images(modality: str) -> datasets.Dataset:
    rng = np.random.default_rng(0)
    pictures = []
    for condition in CLASSES[modality]:
        eye, _ = draw_patient(rng, modality)
        pictures.append(Image.fromarray(render(eye, condition, 0.5, 96, rng).image))
    return datasets.Dataset.from_dict({"image": pictures * 8}, features=datasets.Features({"image": datasets.Image()}))


@pytest.mark.parametrize(
    ("seen", "weights", "warning"),
    [
        ("oct", "cfp", "the images look gray, as OCT scans are, but the weights are of CFP"),
        ("cfp", "oct", "the images look coloured, as fundus photographs are, but the weights are of OCT"),
        ("oct", "oct", None),
        ("cfp", "cfp", None),
        ("cfp", None, None),
        ("oct", None, None),
    ],
)
def test_wrong_modality(seen, weights, warning, caplog):
    with caplog.at_level(logging.WARNING):
        warn_of_modality(images(seen), weights)
    assert [warning in record.message for record in caplog.records] == ([True] if warning else [])


def test_a_classifier_predicts_paths_bytes_images_and_folders(classifier_folder, images_folder, tmp_path):
    classifier, files = load_classifier(classifier_folder), find_images(images_folder)
    assert (classifier.class_names, classifier.problem_type) == (
        ("mild", "none", "severe"),
        "single_label_classification",
    )
    with torch.no_grad():
        pixels = classifier.processor([str(path) for path in files], return_tensors="pt")["pixel_values"]
        expected = classifier.model(pixels).logits.softmax(-1).numpy()
    found = classifier.predict(images_folder, batch_size=5)
    assert found.scores == pytest.approx(expected, abs=1e-5) and found.targets is None
    assert list(found.ids) == [path.relative_to(images_folder).as_posix() for path in files]
    mixed = classifier.predict([files[3], files[4].read_bytes(), Image.open(files[5])])
    assert mixed.scores == pytest.approx(expected[3:6], abs=1e-5)
    assert list(mixed.ids) == [str(files[3]), "1", "2"]
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    with pytest.raises(BadDataError) as error:
        classifier.predict([files[0], bad])
    assert error.value.rows == (str(bad),)
    assert list(classifier.predict([files[0], bad], on_bad_image="skip").ids) == [str(files[0])]
    with pytest.raises(BadArgumentError):
        classifier.predict([bad], on_bad_image="black")
