import math

import pytest
import torch
from torch.nn import functional

from retfound_hf import RetFoundForImageClassification
from retfound_hf.errors import BadArgumentError
from retfound_hf.models.modeling_retfound import classification_loss

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 1.5, -0.5], [1.0, 1.0, 1.0], [-2.0, 0.3, 3.0]])
CLASSES = torch.tensor([0, 1, 2, 1])


def settings(small_config, problem_type="single_label_classification", num_labels=3, **options):
    return small_config(problem_type=problem_type, num_labels=num_labels, **options)


def log_softmax(row: list[float]) -> list[float]:
    total = math.log(sum(math.exp(value) for value in row))
    return [value - total for value in row]


def test_cross_entropy_by_hand(small_config):
    rows = [log_softmax(row) for row in LOGITS.tolist()]
    expected = -sum(row[label] for row, label in zip(rows, CLASSES.tolist(), strict=True)) / 4
    assert classification_loss(LOGITS, CLASSES, settings(small_config)).item() == pytest.approx(expected, rel=1e-6)


def test_label_smoothing_by_hand(small_config):
    rows = [log_softmax(row) for row in LOGITS.tolist()]
    expected = -sum(
        0.9 * row[label] + 0.1 * sum(row) / 3 for row, label in zip(rows, CLASSES.tolist(), strict=True)
    ) / 4  # fmt: skip
    loss = classification_loss(LOGITS, CLASSES, settings(small_config, label_smoothing=0.1))
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_class_weights_by_hand(small_config):
    """Each image counts by the weight of its class, whatever else is in the batch."""
    weights = [1.0, 3.0, 0.5]
    rows = [log_softmax(row) for row in LOGITS.tolist()]
    labels = CLASSES.tolist()
    expected = -sum(weights[label] * row[label] for row, label in zip(rows, labels, strict=True)) / len(labels)
    config = settings(small_config, class_weights=weights)
    loss = classification_loss(LOGITS, CLASSES, config)
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    each = [classification_loss(LOGITS[i : i + 1], CLASSES[i : i + 1], config) for i in range(len(labels))]
    torch.testing.assert_close(torch.stack(each).mean(), loss)
    hard = functional.one_hot(CLASSES, 3).float()
    torch.testing.assert_close(classification_loss(LOGITS, hard, config), loss)


def test_soft_labels_by_hand_and_as_hard_ones(small_config):
    soft = torch.tensor([[0.7, 0.3, 0.0], [0.0, 1.0, 0.0], [0.2, 0.2, 0.6], [0.5, 0.0, 0.5]])
    expected = -(soft * functional.log_softmax(LOGITS, dim=1)).sum(dim=1).mean()
    torch.testing.assert_close(classification_loss(LOGITS, soft, settings(small_config)), expected)
    hard = functional.one_hot(CLASSES, 3).float()
    config = settings(small_config, label_smoothing=0.1)
    torch.testing.assert_close(classification_loss(LOGITS, hard, config), classification_loss(LOGITS, CLASSES, config))


def test_multi_label_by_hand(small_config):
    labels = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])
    total = 0.0
    for row, targets in zip(LOGITS.tolist(), labels.tolist(), strict=True):
        for value, target in zip(row, targets, strict=True):
            probability = 1 / (1 + math.exp(-value))
            total -= math.log(probability if target else 1 - probability)
    config = settings(small_config, "multi_label_classification")
    assert classification_loss(LOGITS, labels, config).item() == pytest.approx(total / 12, rel=1e-5)


def test_multi_label_weights_and_smoothing(small_config):
    labels = torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])
    config = settings(small_config, "multi_label_classification", class_weights=[1.0, 4.0, 2.0], label_smoothing=0.2)
    targets = labels * 0.8 + 0.1
    probability = LOGITS.sigmoid()
    positive = torch.tensor([1.0, 4.0, 2.0])
    expected = -(positive * targets * probability.log() + (1 - targets) * (1 - probability).log()).mean()
    torch.testing.assert_close(classification_loss(LOGITS, labels, config), expected)


def test_regression_is_the_mean_squared_error(small_config):
    config = settings(small_config, "regression", num_labels=1)
    logits, labels = torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([1.5, 2.0, 1.0])
    assert classification_loss(logits, labels, config).item() == pytest.approx((0.25 + 0 + 9) / 3)


def test_target_scale_divides_the_errors(small_config):
    config = settings(small_config, "regression", num_labels=2, target_scale=[10.0, 0.5])
    logits, labels = torch.tensor([[50.0, 1.0], [70.0, 2.0]]), torch.tensor([[60.0, 1.5], [70.0, 1.0]])
    assert classification_loss(logits, labels, config).item() == pytest.approx((1 + 1 + 0 + 4) / 4)


def test_half_precision_logits_give_a_float32_loss(small_config):
    loss = classification_loss(LOGITS.bfloat16(), CLASSES, settings(small_config))
    assert loss.dtype == torch.float32


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (torch.tensor([0.5]), "regression"),
        (torch.tensor([1]), "single_label_classification"),
        (torch.tensor([[1.0, 0.0, 1.0]]), "multi_label_classification"),
    ],
)
def test_problem_type_follows_the_labels(small_config, labels, expected):
    num_labels = 1 if expected == "regression" else 3
    logits = torch.randn(1, num_labels, generator=torch.Generator().manual_seed(0))
    found = classification_loss(logits, labels, small_config(num_labels=num_labels))
    assert torch.equal(
        found, classification_loss(logits, labels, settings(small_config, expected, num_labels=num_labels))
    )


def test_wrong_number_of_weights_is_refused(small_config):
    with pytest.raises(BadArgumentError) as error:
        classification_loss(LOGITS, CLASSES, settings(small_config, class_weights=[1.0, 2.0]))
    assert error.value.field == "class_weights"


@pytest.mark.parametrize(("problem_type", "labels"), [("multi_label_classification", torch.ones(4, 2)),
                                                      ("single_label_classification", torch.tensor([0, 1, 2, 3])),
                                                      ("single_label_classification", torch.ones(4, 2)),
                                                      ("regression", torch.ones(4))])  # fmt: skip
def test_labels_that_do_not_fit_the_head_are_an_error(small_config, problem_type, labels):
    with pytest.raises((ValueError, RuntimeError, IndexError)):
        classification_loss(LOGITS, labels, settings(small_config, problem_type))


@pytest.mark.parametrize(
    ("problem_type", "labels"),
    [
        ("single_label_classification", torch.tensor([0, 2])),
        ("multi_label_classification", torch.tensor([[0.0, 1, 1], [1, 0, 0]])),
        ("regression", torch.tensor([[0.1, 0.2, 0.3], [1.0, 2.0, 3.0]])),
    ],
)
def test_classifier_uses_the_configured_loss(small_config, randomise, images, problem_type, labels):
    model = randomise(RetFoundForImageClassification(small_config(problem_type=problem_type, num_labels=3)))
    out = model(images(), labels=labels)
    logits = out.logits
    expected = {
        "single_label_classification": lambda: functional.cross_entropy(logits, labels),
        "multi_label_classification": lambda: functional.binary_cross_entropy_with_logits(logits, labels),
        "regression": lambda: functional.mse_loss(logits, labels),
    }[problem_type]()
    torch.testing.assert_close(out.loss, expected)
    assert model(images()).loss is None
