"""One image: the numbers of the plain transformers call, and what a folder says of itself."""

import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

from retfound_hf.app.markup import NO_CARD, draw_examples, intended_use
from retfound_hf.app.predictor import Reader
from retfound_hf.errors import RetFoundError
from retfound_hf.evaluation.report import ReportArguments, write_points
from retfound_hf.evaluation.thresholds import OperatingPoint
from retfound_hf.images.quality import assess_quality


def test_scores_are_those_of_transformers(reader, classifier_folder, photograph):
    image = photograph(3)
    processor = AutoImageProcessor.from_pretrained(classifier_folder)
    model = AutoModelForImageClassification.from_pretrained(classifier_folder).eval()
    with torch.no_grad():
        expected = model(**processor(image, return_tensors="pt")).logits.softmax(-1)[0]
    answer = reader.answer(image)
    assert torch.allclose(torch.from_numpy(answer.scores).float(), expected, atol=1e-6)
    assert abs(answer.scores.sum() - 1) < 1e-9 and answer.quality.verdict == "ok"


def test_the_batch_has_the_same_scores_as_single_images(reader, photograph):
    images = [photograph(number) for number in range(3)]
    together = reader.scores(images)
    for image, row in zip(images, together, strict=True):
        assert abs(reader.answer(image).scores - row).max() < 1e-4


def test_temperature_and_modality_come_from_the_folder(make_folder):
    reader = Reader(str(make_folder(calibration_temperature=1.5, modality="oct")))
    assert (reader.temperature, reader.modality) == (1.5, "oct")
    assert Reader(str(make_folder())).temperature is None


def test_an_adapter_answers_as_peft_does(adapter_folder, autoencoder_folder, photograph, capfd):
    config = AutoConfig.from_pretrained(adapter_folder)
    base = AutoModelForImageClassification.from_pretrained(autoencoder_folder, config=config)
    model = PeftModel.from_pretrained(base, adapter_folder).eval()
    pixels = AutoImageProcessor.from_pretrained(adapter_folder)(photograph(30), return_tensors="pt")
    with torch.no_grad():
        expected = model(**pixels).logits.softmax(-1)[0]
    reader = Reader(str(adapter_folder))
    assert "not sharded" not in capfd.readouterr().err  # a report on tensor parallelism that nobody asked for
    assert torch.allclose(torch.from_numpy(reader.answer(photograph(30)).scores).float(), expected, atol=1e-5)
    assert reader.temperature is not None
    assert {point.label for point in reader.points} == {"normal", "retinopathy"}


def test_thresholds_come_from_the_folder(make_folder):
    folder = make_folder()
    assert Reader(str(folder)).points == []
    points = [OperatingPoint("glaucoma", "sensitivity", 0.9, 0.25)]
    write_points(folder, points, ReportArguments(), images=40)
    assert Reader(str(folder)).points == points
    write_points(folder, points, ReportArguments(level="patient"), images=40)
    assert Reader(str(folder)).points == []  # the page shows images


def test_a_folder_without_a_classifier_is_refused(autoencoder_folder):
    with pytest.raises(RetFoundError, match="no trained classifier"):
        Reader(str(autoencoder_folder))


def test_the_card_s_word_on_use(classifier_folder, autoencoder_folder):
    assert intended_use(str(classifier_folder)) == "For research on **synthetic** photographs alone."
    assert intended_use(str(autoencoder_folder)) == NO_CARD


@pytest.mark.parametrize(("modality", "count"), [("cfp", 3), ("oct", 3), (None, 6)])
def test_examples_are_of_the_modality_and_fit_to_be_judged(modality, count):
    examples = draw_examples(modality)
    assert len({example.name for example in examples}) == count
    for example in examples:
        assert assess_quality(example.image, modality).verdict == "ok"
        assert max(example.thumbnail.size) <= 192
