"""One folder serves every class, under the tensor names of transformers 4.x."""

import json

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    pipeline,
)

from retfound_hf import (
    PRESETS,
    RetFoundConfig,
    RetFoundForImageClassification,
    RetFoundForPreTraining,
    RetFoundImageProcessor,
    RetFoundModel,
)
from retfound_hf.errors import BadArgumentError, BadModelError


def layer_names(prefix: str) -> set[str]:
    parts = [
        "attention.attention.query", "attention.attention.key", "attention.attention.value", "attention.output.dense",
        "intermediate.dense", "output.dense", "layernorm_before", "layernorm_after",
    ]  # fmt: skip
    return {f"{prefix}.{part}.{kind}" for part in parts for kind in ("weight", "bias")}


def encoder_names(layers: int) -> set[str]:
    names = {
        "vit.embeddings.cls_token",
        "vit.embeddings.position_embeddings",
        "vit.embeddings.patch_embeddings.projection.weight",
        "vit.embeddings.patch_embeddings.projection.bias",
        "vit.layernorm.weight",
        "vit.layernorm.bias",
    }
    return names.union(*(layer_names(f"vit.encoder.layer.{index}") for index in range(layers)))


def decoder_names(layers: int) -> set[str]:
    names = {"decoder.mask_token", "decoder.decoder_pos_embed"}
    for part in ("decoder_embed", "decoder_norm", "decoder_pred"):
        names |= {f"decoder.{part}.weight", f"decoder.{part}.bias"}
    return names.union(*(layer_names(f"decoder.decoder_layers.{index}") for index in range(layers)))


def names_on_disk(folder) -> set[str]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return set(file.keys())


def test_autoencoder_on_disk_bears_the_names_of_transformers_4(pretraining_folder):
    assert names_on_disk(pretraining_folder()) == encoder_names(3) | decoder_names(2)


def test_classifier_on_disk_bears_the_names_of_transformers_4(small_config, tmp_path):
    RetFoundForImageClassification(small_config()).save_pretrained(tmp_path)
    head = {"fc_norm.weight", "fc_norm.bias", "classifier.weight", "classifier.bias"}
    assert names_on_disk(tmp_path) == encoder_names(3) | head


def test_published_size():
    """329.5 million parameters in 398 tensors once q, k and v are fused, as in the official file."""
    with torch.device("meta"):
        model = RetFoundForPreTraining(RetFoundConfig())
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(329.5e6, abs=0.05e6)
    names = [name for name, _ in model.named_parameters()]
    fused = [name for name in names if ".query." not in name and ".key." not in name]
    assert len(fused) == 398


def test_one_folder_serves_every_auto_class(pretraining_folder, images):
    folder = pretraining_folder()
    assert {path.name for path in folder.iterdir()} >= {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert type(AutoConfig.from_pretrained(folder)) is RetFoundConfig
    assert type(AutoImageProcessor.from_pretrained(folder)) is RetFoundImageProcessor
    encoder = AutoModel.from_pretrained(folder)
    autoencoder = AutoModelForPreTraining.from_pretrained(folder)
    classifier = AutoModelForImageClassification.from_pretrained(folder, num_labels=5)
    assert [type(model) for model in (encoder, autoencoder, classifier)] == [
        RetFoundModel,
        RetFoundForPreTraining,
        RetFoundForImageClassification,
    ]
    expected = encoder(images()).patch_mean
    for model in (autoencoder, classifier):
        torch.testing.assert_close(model.vit(images()).patch_mean, expected, atol=0, rtol=0)
    assert classifier(images()).logits.shape == (2, 5)


@pytest.mark.parametrize(
    ("auto", "cls"),
    [
        (AutoModel, RetFoundModel),
        (AutoModelForPreTraining, RetFoundForPreTraining),
        (AutoModelForImageClassification, RetFoundForImageClassification),
    ],
)
def test_save_and_load_gives_the_same_outputs(auto, cls, small_config, randomise, images, tmp_path):
    model = randomise(cls(small_config(num_labels=3)))
    model.save_pretrained(tmp_path)
    loaded, report = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is cls
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    noise = {"noise": torch.rand(2, 16)} if cls is RetFoundForPreTraining else {}
    expected, found = model(images(), **noise), loaded.eval()(images(), **noise)
    assert expected.keys() == found.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=0, rtol=0)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, loaded.get_parameter(name)), name


def test_a_pretrained_encoder_under_a_new_head_misses_the_head_alone(pretraining_folder):
    _, report = RetFoundForImageClassification.from_pretrained(pretraining_folder(), output_loading_info=True)
    assert set(report["missing_keys"]) == {"fc_norm.weight", "fc_norm.bias", "classifier.weight", "classifier.bias"}
    assert not report["unexpected_keys"]


@pytest.mark.parametrize("cls", [RetFoundModel, RetFoundForImageClassification])
def test_pretraining_from_an_encoder_only_folder_is_refused(cls, small_config, images, tmp_path):
    cls(small_config()).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["encoder_only"] is True
    with pytest.raises(BadModelError):
        AutoModelForPreTraining.from_pretrained(tmp_path)
    model = AutoModelForPreTraining.from_pretrained(tmp_path, encoder_only=False)
    expected = AutoModel.from_pretrained(tmp_path)(images()).patch_mean
    torch.testing.assert_close(model.vit(images()).patch_mean, expected)
    model.save_pretrained(tmp_path / "continued")
    AutoModelForPreTraining.from_pretrained(tmp_path / "continued")


def test_pipeline_reads_a_classifier_folder(small_config, randomise, tmp_path):
    names = {0: "healthy", 1: "glaucoma", 2: "retinopathy"}
    config = small_config(id2label=names, label2id={name: index for index, name in names.items()})
    model = randomise(RetFoundForImageClassification(config))
    processor = RetFoundImageProcessor.for_image_size(64)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    image = Image.effect_noise((90, 80), 60).convert("RGB")
    found = pipeline("image-classification", model=str(tmp_path), device="cpu")(image)
    with torch.no_grad():
        logits = model(**processor(image, return_tensors="pt")).logits[0]
    expected = logits.softmax(dim=0)
    assert {row["label"]: row["score"] for row in found} == pytest.approx(
        {names[index]: expected[index].item() for index in names}, abs=1e-5
    )


@pytest.mark.parametrize("preset", PRESETS)
def test_presets(preset):
    config = RetFoundConfig.from_preset(preset, num_labels=4)
    assert config.layer_norm_eps == 1e-6 and config.norm_pix_loss and config.num_labels == 4
    sizes = (config.hidden_size, config.num_hidden_layers, config.num_attention_heads, config.intermediate_size)
    assert sizes == ((192, 12, 3, 768) if preset == "retfound-tiny" else (1024, 24, 16, 4096))
    assert config.mask_ratio == (0.85 if preset == "retfound-oct" else 0.75)
    assert config.patch_size == 16 and config.image_size == 224


@pytest.mark.parametrize(
    "values",
    [
        {"hidden_size": 100, "num_attention_heads": 16},
        {"decoder_hidden_size": 36, "decoder_num_attention_heads": 8},
        {"hidden_size": 66, "num_attention_heads": 3},
        {"image_size": 100},
        {"image_size": (64, 64)},
        {"mask_ratio": 1.0},
        {"drop_path_rate": -0.1},
        {"label_smoothing": 1.5},
        {"calibration_temperature": 0.0},
        {"head_norm": "triple"},
        {"modality": "mri"},
    ],
)
def test_impossible_configurations_are_refused(values):
    with pytest.raises(BadArgumentError) as error:
        RetFoundConfig(**values)
    name, value = next(iter(values.items()))
    assert (error.value.field, error.value.value) == (name, value)


def test_an_unknown_preset_is_refused():
    with pytest.raises(BadArgumentError) as error:
        RetFoundConfig.from_preset("retfound")
    assert error.value.value == "retfound" and error.value.accepted == tuple(PRESETS)
