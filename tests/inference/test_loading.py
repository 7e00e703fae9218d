"""Folders in: what is missing is never filled with random weights in silence."""

import shutil

import pytest
import torch
from transformers import AutoModel

from retfound_hf import RetFoundImageProcessor
from retfound_hf.errors import BadModelError
from retfound_hf.inference.predict import pooled
from retfound_hf.models.loading import load_classifier, load_encoder, load_processor

PIXELS = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def stock_vit(tmp_path):
    """Makes a stock ViT folder, of the encoder with its pooler or of a classifier without one."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor, ViTModel

    def make(with_pooler: bool):
        config = ViTConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=32,
            patch_size=8, num_labels=3,
        )  # fmt: skip
        torch.manual_seed(0)
        model = (ViTModel if with_pooler else ViTForImageClassification)(config)
        model.save_pretrained(tmp_path / "vit")
        ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "vit")
        return tmp_path / "vit", model.eval()

    return make


def test_a_folder_without_a_head_is_refused(encoder_folder):
    with pytest.raises(BadModelError) as error:
        load_classifier(str(encoder_folder))
    assert error.value.model == str(encoder_folder)


def test_models_come_in_evaluation_mode(classifier_folder, encoder_folder):
    assert not load_classifier(str(classifier_folder)).training
    assert not load_encoder(str(encoder_folder)).training


def test_encoder_of_a_classifier_folder(classifier_folder):
    classifier, encoder = load_classifier(str(classifier_folder)), load_encoder(str(classifier_folder))
    with torch.no_grad():
        assert torch.equal(encoder(PIXELS).last_hidden_state, classifier.vit(PIXELS).last_hidden_state)


def test_cut_off_weights_are_refused_in_one_line(encoder_folder, tmp_path):
    (tmp_path / "config.json").write_bytes((encoder_folder / "config.json").read_bytes())
    whole = (encoder_folder / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadModelError) as error:
        load_encoder(str(tmp_path))
    assert error.value.model == str(tmp_path) and "\n" not in str(error.value)


@pytest.mark.parametrize("with_pooler", [True, False])
def test_a_stock_vit_gives_the_features_of_retfound(stock_vit, with_pooler):
    """Its pooler and its classifier are left out: the feature vector is the same for all weights."""
    folder, model = stock_vit(with_pooler)
    inner = model if with_pooler else model.vit
    before_norm: list[torch.Tensor] = []
    inner.layernorm.register_forward_pre_hook(lambda module, inputs: before_norm.append(inputs[0]))
    with torch.no_grad():
        expected = inner(PIXELS).last_hidden_state
        found = load_encoder(str(folder))(PIXELS)
    assert torch.allclose(found.last_hidden_state, expected, atol=1e-5)
    mean = before_norm[0][:, 1:].mean(dim=1)
    assert torch.allclose(found.patch_mean, mean, atol=1e-5)
    assert torch.allclose(pooled(found), torch.nn.functional.layer_norm(mean, (32,), eps=1e-12), atol=1e-5)


def test_processor_of_a_folder(encoder_folder):
    processor = load_processor(str(encoder_folder))
    assert processor.size["height"] == 32
    assert processor.resized_size["height"] == 37  # 32 x 256 / 224
    assert processor.do_fundus_crop
    assert not load_processor(str(encoder_folder), crop=False).do_fundus_crop
    larger = load_processor(str(encoder_folder), image_size=64)
    assert (larger.size["height"], larger.resized_size["height"]) == (64, 73)


def test_folders_of_before_keep_the_numbers_of_another_size(encoder_folder, tmp_path):
    """Their configuration names the size of the positions, and the processor beside it that of the images."""
    folder = shutil.copytree(encoder_folder, tmp_path / "folder")
    RetFoundImageProcessor.for_image_size(48).save_pretrained(folder)
    pixels = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = AutoModel.from_pretrained(folder)(pixels, interpolate_pos_encoding=True).pooler_output
        assert torch.equal(load_encoder(str(folder))(pixels).pooler_output, expected)


def test_of_a_stock_processor_the_normalisation_and_the_size_are_kept(stock_vit):
    processor = load_processor(str(stock_vit(with_pooler=True)[0]))
    assert isinstance(processor, RetFoundImageProcessor)
    assert list(processor.image_mean) == [0.5, 0.5, 0.5]
    assert processor.size["height"] == 32


def test_without_a_processor_the_size_is_the_models(encoder_folder, tmp_path):
    (tmp_path / "config.json").write_bytes((encoder_folder / "config.json").read_bytes())
    processor = load_processor(str(tmp_path))
    assert processor.size["height"] == 32
    assert processor.image_mean == pytest.approx([0.485, 0.456, 0.406])
