"""Folders of adapters, as `finetune` and as PEFT itself write them: the same numbers whoever reads them."""

import json
from pathlib import Path

import pytest
import torch
from noise import with_noise
from peft import LoHaConfig, LoraConfig, PeftModel, get_peft_model
from PIL import Image
from tiny import SIZE, named, save_autoencoder, save_classifier, save_stock
from torch import nn
from transformers import AutoModel, AutoModelForImageClassification, PreTrainedModel, pipeline

from retfound_hf import RetFoundForImageClassification
from retfound_hf.errors import BadModelError
from retfound_hf.models.loading import (
    load_classifier,
    load_encoder,
    load_network,
    load_processor,
    network_config,
    read_config,
)

CLASSES = ("mild", "none", "severe")
NAMES = dict(enumerate(CLASSES))
SAVED = ["fc_norm", "classifier"]


def pixels() -> torch.Tensor:
    return torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def largest_difference(model: nn.Module, expected: torch.Tensor) -> float:
    with torch.no_grad():
        return (model(pixels()).logits - expected).abs().max().item()


def adapt(network: PreTrainedModel, folder: Path, options: LoraConfig | LoHaConfig) -> torch.Tensor:
    """Adapter with noise on all that it trains, written by PEFT; its logits."""
    adapted = get_peft_model(network, options)
    frozen = [parameter for parameter in adapted.parameters() if not parameter.requires_grad]
    kept = [parameter.detach().clone() for parameter in frozen]
    with_noise(adapted, 0.2).eval()
    for parameter, value in zip(frozen, kept, strict=True):
        parameter.data.copy_(value)
    adapted.save_pretrained(folder)
    with torch.no_grad():
        return adapted(pixels()).logits


def make_base(kind: str, folder: Path) -> Path:
    return save_autoencoder(folder) if kind == "retfound" else save_stock(folder, kind)


@pytest.mark.parametrize(("kind", "targets"), [("retfound", "query"), ("vit", "query"), ("dinov2", "q_proj")])
def test_a_folder_with_its_configuration(kind, targets, tmp_path):
    """As `finetune` writes it; the base is a local folder, whatever its class."""
    base, folder = str(make_base(kind, tmp_path / "base")), tmp_path / "adapter"
    stored = read_config(base)
    network, _ = load_network(base, stored, network_config(stored, **named(CLASSES)), classifier=True)
    expected = adapt(network, folder, LoraConfig(target_modules=[targets], modules_to_save=SAVED))
    network.config.calibration_temperature = 1.5  # of the head that the adapter brings
    network.config.save_pretrained(folder)
    load_processor(base).save_pretrained(folder)
    found = AutoModelForImageClassification.from_pretrained(folder)
    merged = load_classifier(str(folder))
    assert found.config.id2label == NAMES and not found.training
    assert found.config.calibration_temperature == merged.config.calibration_temperature == 1.5
    assert largest_difference(found, expected) < 1e-6
    assert largest_difference(merged, expected) < 2e-6 and not [name for name in merged.state_dict() if "lora" in name]
    with torch.no_grad():
        features, own = AutoModel.from_pretrained(folder)(pixels()), load_encoder(str(folder))(pixels())
    assert (features.pooler_output - own.pooler_output).abs().max() < 1e-5
    scores = pipeline("image-classification", str(folder))(Image.new("RGB", (40, 36), (90, 60, 30)))
    assert {found["label"] for found in scores} == set(CLASSES)


@pytest.mark.parametrize(
    "options",
    [
        LoraConfig(target_modules=["query", "value"], modules_to_save=["classifier"]),
        LoraConfig(target_modules="all-linear", use_dora=True, modules_to_save=SAVED),
        LoraConfig(target_modules=["query"], bias="all", modules_to_save=["classifier"]),
        LoHaConfig(target_modules=["key"], modules_to_save=["classifier"]),
    ],
    ids=["lora", "dora", "biases", "loha"],
)
def test_a_folder_of_peft_alone(options, tmp_path):
    """No configuration and no image processor: the head gives the number of labels, the base the rest."""
    base, folder = save_autoencoder(tmp_path / "base"), tmp_path / "adapter"
    network = AutoModelForImageClassification.from_pretrained(base, **named(CLASSES))
    expected = adapt(network, folder, options)
    assert not (folder / "config.json").exists()
    found = AutoModelForImageClassification.from_pretrained(folder)
    assert found.config.num_labels == 3 and largest_difference(found, expected) < 1e-6
    given = AutoModelForImageClassification.from_pretrained(folder, **named(CLASSES))
    assert given.config.id2label == NAMES and largest_difference(given, expected) < 1e-6
    assert type(found).from_pretrained(folder).config.num_labels == 3
    assert largest_difference(load_classifier(str(folder)), expected) < 2e-6
    assert read_config(str(folder)).num_labels == 3
    assert load_processor(str(folder)).to_dict() == load_processor(str(base)).to_dict()


@pytest.mark.parametrize("own", [False, True])
def test_an_adapter_takes_images_of_another_size(own, tmp_path):
    """Asked for at loading, with and without a configuration beside the adapter."""
    base, folder = save_autoencoder(tmp_path / "base"), tmp_path / "adapter"
    network = AutoModelForImageClassification.from_pretrained(base, **named(CLASSES))
    adapt(network, folder, LoraConfig(target_modules=["query", "value"], modules_to_save=SAVED))
    if own:
        network.config.save_pretrained(folder)
    larger = AutoModelForImageClassification.from_pretrained(base, image_size=48, **named(CLASSES))
    found = AutoModelForImageClassification.from_pretrained(folder, image_size=48)
    images = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = PeftModel.from_pretrained(larger, folder).eval()(images).logits
        assert found.config.image_size == 48 and torch.allclose(found(images).logits, expected, atol=1e-6)


def test_a_stock_network_with_an_adapter_keeps_its_own_head(tmp_path):
    base, folder = save_stock(tmp_path / "base", "vit"), tmp_path / "adapter"
    network = AutoModelForImageClassification.from_pretrained(base, **named(CLASSES))
    expected = adapt(network, folder, LoraConfig(target_modules=["q_proj"], modules_to_save=["classifier"]))
    assert largest_difference(load_classifier(str(folder)), expected) < 2e-6
    with pytest.raises(BadModelError) as error:  # it has no patch mean
        load_encoder(str(folder))
    assert error.value.model == str(folder)


def test_the_head_of_a_classifier_serves_an_adapter_without_one(tmp_path):
    save_classifier(tmp_path / "classifier", CLASSES)
    save_autoencoder(tmp_path / "autoencoder")
    options = LoraConfig(target_modules=["query"])
    for name in ("classifier", "autoencoder"):
        network = AutoModelForImageClassification.from_pretrained(tmp_path / name)
        expected = adapt(network, tmp_path / f"on-{name}", options)
        if name == "classifier":
            found = load_classifier(str(tmp_path / "on-classifier"))
            assert found.config.id2label == NAMES and largest_difference(found, expected) < 2e-6
    with pytest.raises(BadModelError) as error:  # its head would be random
        load_classifier(str(tmp_path / "on-autoencoder"))
    assert error.value.model == str(tmp_path / "on-autoencoder")


@pytest.mark.parametrize("load", [load_classifier, AutoModelForImageClassification.from_pretrained])
@pytest.mark.parametrize("change", ["no base", "deeper", "wider", "rank"])
def test_an_adapter_that_does_not_fit_is_refused(change, load, tmp_path):
    folder = tmp_path / "adapter"
    base = save_autoencoder(tmp_path / "base", **{"deeper": {"num_hidden_layers": 3}}.get(change, {}))
    network = AutoModelForImageClassification.from_pretrained(base, num_labels=3)
    adapt(network, folder, LoraConfig(target_modules=["query"], modules_to_save=["classifier"]))
    network.config.save_pretrained(folder)
    named_base = None if change == "no base" else str(save_autoencoder(tmp_path / "other", hidden_size=64))
    named_base = str(base) if change == "rank" else named_base
    if change == "deeper":
        named_base = str(save_autoencoder(tmp_path / "shallow"))
        (folder / "config.json").unlink()
    stored = json.loads((folder / "adapter_config.json").read_text())
    rank = {"r": 4097} if change == "rank" else {}
    (folder / "adapter_config.json").write_text(json.dumps({**stored, "base_model_name_or_path": named_base, **rank}))
    with pytest.raises(BadModelError):
        load(str(folder))


WAYS = {"class": RetFoundForImageClassification.from_pretrained,
        "auto": AutoModelForImageClassification.from_pretrained}  # fmt: skip


@pytest.fixture
def adapter(tmp_path):
    """Folder of an adapter with a head of two classes, with or without its configuration."""
    network = load_classifier(str(save_classifier(tmp_path / "base", ("a", "b"))))
    network.name_or_path = str(tmp_path / "base")
    adapt(network, tmp_path / "adapter", LoraConfig(target_modules=["query"], modules_to_save=SAVED))

    def make(own: bool, **changes) -> Path:
        if own:
            network.config.update(changes)
            network.config.save_pretrained(tmp_path / "adapter")
        return tmp_path / "adapter"

    return make


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("way", WAYS)
def test_another_number_of_labels_is_a_new_head_where_that_is_allowed(adapter, own, way):
    """As of an adapter of a stock network."""
    folder, load = adapter(own), WAYS[way]
    model = load(folder, num_labels=5, ignore_mismatched_sizes=True)
    assert model.config.num_labels == 5 and model(pixels()).logits.shape == (2, 5)
    expected, found = load(folder), model.base_model
    with torch.no_grad():
        vectors = [each(pixels()).last_hidden_state for each in (found, expected.base_model)]
    assert torch.equal(*vectors) and load(folder, num_labels=2).config.num_labels == 2
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        load(folder, num_labels=5)


def test_the_image_size_of_an_adapter_is_its_own(adapter):
    folder = adapter(True, image_size=2 * SIZE)
    models = [*(load(folder) for load in WAYS.values()), load_classifier(str(folder))]
    large = torch.randn(1, 3, 2 * SIZE, 2 * SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        first, *others = [model.eval()(large).logits for model in models]
    assert all(torch.allclose(first, other, atol=1e-6) for other in others)
    assert load_processor(str(folder)).size == {"height": 2 * SIZE, "width": 2 * SIZE}
