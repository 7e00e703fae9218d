"""Initial weights of the released MAE code (He et al. 2022) and of the official fine-tuning head."""

import math

import pytest
import torch
from transformers import AutoModelForImageClassification

from retfound_hf import RetFoundForImageClassification, RetFoundForPreTraining


@pytest.fixture
def model(small_config):
    torch.manual_seed(0)
    return RetFoundForPreTraining(small_config(hidden_size=192, intermediate_size=768))


# Bound of Xavier's uniform distribution: sqrt(6 / (fan in + fan out)).
BOUNDS = {
    "query and key and value": ("attention.attention.", math.sqrt(6 / (192 + 3 * 192))),
    "attention output": ("attention.output.dense.", math.sqrt(6 / (192 + 192))),
    "mlp in": ("intermediate.dense.", math.sqrt(6 / (192 + 768))),
    "mlp out": ("1.output.dense.", math.sqrt(6 / (768 + 192))),
    "patches": ("patch_embeddings.projection.", math.sqrt(6 / (3 * 16 * 16 + 192))),
}


@pytest.mark.parametrize(("part", "bound"), BOUNDS.values(), ids=BOUNDS)
def test_linear_layers_are_xavier_uniform(model, part, bound):
    weights = [w for name, w in model.vit.named_parameters() if part in name and name.endswith("weight")]
    assert weights
    for weight in weights:
        assert weight.abs().max() <= bound
        assert weight.abs().max() > 0.99 * bound
        assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)  # of a uniform distribution


def test_decoder_layers_are_xavier_uniform(model):
    prediction = model.decoder.decoder_pred.weight
    assert 0.99 < prediction.abs().max() / math.sqrt(6 / (32 + 768)) <= 1
    query = model.decoder.decoder_layers[0].attention.attention.query.weight
    assert 0.98 < query.abs().max() / math.sqrt(6 / (32 + 3 * 32)) <= 1


def test_biases_are_zero_and_norms_one(model):
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name


def test_tokens_are_normal(small_config):
    torch.manual_seed(0)
    model = RetFoundForPreTraining(small_config(hidden_size=1024, decoder_hidden_size=512))
    for token in (model.vit.embeddings.cls_token, model.decoder.mask_token):
        assert token.std().item() == pytest.approx(0.02, rel=0.15)
        assert token.abs().max() > 0.04


def test_head_starts_near_zero_from_config(small_config):
    torch.manual_seed(0)
    model = AutoModelForImageClassification.from_config(small_config(hidden_size=512, num_labels=20))
    assert model.classifier.weight.std().item() == pytest.approx(2e-5, rel=0.05)
    assert not model.classifier.bias.any()


def test_head_starts_near_zero_over_a_pretrained_encoder(pretraining_folder, images):
    folder = pretraining_folder(hidden_size=512)
    torch.manual_seed(0)
    model = RetFoundForImageClassification.from_pretrained(folder, num_labels=20).eval()
    assert model.classifier.weight.std().item() == pytest.approx(2e-5, rel=0.05)
    assert not model.classifier.bias.any()
    assert (model.fc_norm.weight == 1).all() and not model.fc_norm.bias.any()
    logits = model(images()).logits
    assert 0 < logits.abs().max() < 0.01


def test_the_seed_decides_the_weights(small_config):
    weights = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        weights.append(RetFoundForPreTraining(small_config()).decoder.decoder_embed.weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
