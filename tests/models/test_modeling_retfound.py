"""Encoder, masked autoencoder, classifier and their folders: equal to stock classes and to formulas."""

import json
import math
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import AutoModel, AutoModelForImageClassification, AutoModelForPreTraining
from transformers.models.vit_mae.modeling_vit_mae import ViTMAEEmbeddings, build_2d_sinusoidal_position_embedding

import retfound_hf
from retfound_hf import RetFoundForImageClassification, RetFoundForPreTraining, RetFoundImageProcessor, RetFoundModel
from retfound_hf.errors import BadArgumentError, BadDataError, BadModelError
from retfound_hf.models.modeling_retfound import classification_loss
from retfound_hf.models.patches import positions_for_grid, sincos_positions
from retfound_hf.vocabulary import POINTS_FILE, problem_type_of


def test_every_call_gives_the_same_output(small_config, randomise, images):
    model = randomise(RetFoundModel(small_config()))
    first, second = model(images()), model(images())
    assert torch.equal(first.last_hidden_state, second.last_hidden_state)
    assert torch.equal(first.pooler_output, second.pooler_output)
    assert torch.equal(model.train()(images()).pooler_output, first.pooler_output)


def test_loads_by_keyword_and_from_weights_alone(pretraining_folder, images):
    """As stock classes are called."""
    folder = pretraining_folder()
    model = RetFoundModel.from_pretrained(folder)
    by_keyword = RetFoundModel.from_pretrained(pretrained_model_name_or_path=folder)
    of_weights = RetFoundModel.from_pretrained(None, config=model.config, state_dict=model.state_dict())
    for found in (by_keyword, of_weights):
        assert torch.equal(found(images()).pooler_output, model(images()).pooler_output)


def test_equals_the_stock_encoder_put_back_in_order(pretraining_folder, images):
    """Stock ViTMAE shuffles the patches even when it masks none; un-shuffled, they are ours."""
    folder = pretraining_folder()
    stock = transformers.ViTMAEModel.from_pretrained(folder, mask_ratio=0.0).eval()
    expected = stock(images())
    order = expected.ids_restore[..., None].expand(-1, -1, 64)
    raster = torch.cat([expected.last_hidden_state[:, :1], expected.last_hidden_state[:, 1:].gather(1, order)], dim=1)
    assert not torch.allclose(expected.last_hidden_state, raster, atol=1e-2)
    ours = AutoModel.from_pretrained(folder).eval()(images())
    torch.testing.assert_close(ours.last_hidden_state, raster, atol=1e-5, rtol=1e-5)


def test_pooler_output_is_the_mean_of_the_patches_normalised_without_affine(small_config, randomise, images):
    model = randomise(RetFoundModel(small_config()))
    out = model(images(), output_hidden_states=True)
    mean = out.hidden_states[-1][:, 1:].mean(dim=1)
    variance = mean.var(dim=1, unbiased=False, keepdim=True)
    by_hand = (mean - mean.mean(dim=1, keepdim=True)) / (variance + 1e-6).sqrt()
    torch.testing.assert_close(out.patch_mean, mean)
    torch.testing.assert_close(out.pooler_output, by_hand, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out.pooler_output.mean(dim=1), torch.zeros(2), atol=1e-5, rtol=0)


def test_images_of_a_batch_do_not_meet(small_config, randomise, images):
    model = randomise(RetFoundModel(small_config()))
    batch = images(4)
    alone = torch.cat([model(image[None]).pooler_output for image in batch])
    torch.testing.assert_close(model(batch).pooler_output, alone, atol=1e-5, rtol=1e-5)


def test_sdpa_is_what_runs_by_default(small_config, images, monkeypatch):
    calls, original = [], functional.scaled_dot_product_attention
    counted = lambda *args, **kwargs: calls.append(1) or original(*args, **kwargs)  # noqa: E731
    monkeypatch.setattr(functional, "scaled_dot_product_attention", counted)
    model = RetFoundModel(small_config())
    model(images())
    assert len(calls) == 3
    model.set_attn_implementation("eager")
    model(images())
    assert len(calls) == 3


@pytest.mark.parametrize("cls", [RetFoundModel, RetFoundForPreTraining, RetFoundForImageClassification])
def test_eager_equals_sdpa(cls, small_config, randomise, images, tmp_path):
    randomise(cls(small_config(num_labels=3))).save_pretrained(tmp_path)
    noise = {"noise": torch.rand(2, 16)} if cls is RetFoundForPreTraining else {}
    fused = cls.from_pretrained(tmp_path).eval()(images(), **noise)
    eager = cls.from_pretrained(tmp_path, attn_implementation="eager").eval()(images(), **noise)
    for name in fused:
        torch.testing.assert_close(fused[name], eager[name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_attentions_are_returned_whatever_runs_by_default(implementation, small_config, randomise, images):
    """Under SDPA a stock model returns None."""
    model = randomise(RetFoundForImageClassification(small_config()))
    model.set_attn_implementation(implementation)
    assert model.config._attn_implementation == implementation
    plain, out = model(images()), model(images(), output_attentions=True)
    assert plain.attentions is None
    assert [weights.shape for weights in out.attentions] == [(2, 4, 17, 17)] * 3
    for weights in out.attentions:
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 4, 17))
    torch.testing.assert_close(out.logits, plain.logits, atol=1e-5, rtol=1e-5)


def test_attention_weights_are_the_softmax_of_scaled_products(small_config, randomise, images):
    model = randomise(RetFoundModel(small_config()))
    out = model(images(), output_attentions=True, output_hidden_states=True)
    layer = model.encoder.layer[0]
    tokens = layer.layernorm_before(out.hidden_states[0])
    query = layer.attention.attention.query(tokens)[..., 16:32]  # the second of four heads
    key = layer.attention.attention.key(tokens)[..., 16:32]
    expected = (query @ key.transpose(1, 2) / 4).softmax(dim=-1)
    torch.testing.assert_close(out.attentions[0][:, 1], expected, atol=1e-6, rtol=1e-5)


def formula(width: int, grid: int) -> np.ndarray:
    """The MAE paper's released convention, one number at a time: the first half of the channels is the column."""
    table = np.zeros((1 + grid * grid, width))
    quarter = width // 4
    for row in range(grid):
        for column in range(grid):
            token = 1 + row * grid + column
            for half, position in enumerate((column, row)):
                for i in range(quarter):
                    angle = position / 10000 ** (i / quarter)
                    table[token, 2 * half * quarter + i] = math.sin(angle)
                    table[token, (2 * half + 1) * quarter + i] = math.cos(angle)
    return table


def assert_true_tables(model: torch.nn.Module, grid: int = 4):
    tables = {name: value for name, value in model.named_parameters() if "pos" in name.rsplit(".", 1)[-1]}
    assert tables
    for name, value in tables.items():
        expected = formula(value.shape[-1], grid)
        assert value.shape == (1, *expected.shape), name
        np.testing.assert_allclose(value[0].detach().numpy(), expected, atol=1e-6, err_msg=name)
    return tables


def test_table_is_the_formula_at_the_published_size():
    np.testing.assert_allclose(sincos_positions(1024, 14)[0].numpy(), formula(1024, 14), atol=1e-6)
    assert sincos_positions(1024, 14).dtype == torch.float32


def test_table_is_the_stock_convention():
    stock = ViTMAEEmbeddings(transformers.ViTMAEConfig(hidden_size=64, image_size=96, patch_size=16))
    stock.initialize_weights()
    assert stock.position_embeddings.abs().max() > 0.9
    torch.testing.assert_close(sincos_positions(64, 6), stock.position_embeddings.detach(), atol=1e-6, rtol=0)
    rows_first = build_2d_sinusoidal_position_embedding(6, 6, embed_dim=64, cls_token=True)
    rotated = torch.cat([rows_first[:, 32:], rows_first[:, :32]], dim=1)
    torch.testing.assert_close(sincos_positions(64, 6)[0], rotated, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("cls", "count"), [(RetFoundForPreTraining, 2), (RetFoundModel, 1), (RetFoundForImageClassification, 1)]
)
def test_tables_after_construction_and_loading(small_config, cls, count, tmp_path):
    cls(small_config()).save_pretrained(tmp_path)
    for model in (cls(small_config()), cls._from_config(small_config()), cls.from_pretrained(tmp_path)):
        assert len(assert_true_tables(model)) == count


def test_both_tables_when_the_file_lacks_them(small_config, tmp_path):
    """`from_pretrained` builds on the meta device, where a table computed at construction would be lost."""
    RetFoundForPreTraining(small_config()).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(path).items() if "pos" not in name.rsplit(".", 1)[-1]}
    assert len(kept) == len(load_file(path)) - 2
    save_file(kept, path, metadata={"format": "pt"})
    model, report = RetFoundForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert len(report["missing_keys"]) == 2
    assert len(assert_true_tables(model)) == 2
    assert_true_tables(RetFoundForImageClassification.from_pretrained(tmp_path))
    assert_true_tables(RetFoundModel.from_pretrained(tmp_path))


def test_interpolation_keeps_the_class_token_and_equals_channelwise_resizing():
    table = torch.randn(1, 17, 8, generator=torch.Generator().manual_seed(0))
    assert positions_for_grid(table, 4) is table
    resized = positions_for_grid(table, 6)
    assert resized.shape == (1, 37, 8)
    torch.testing.assert_close(resized[:, 0], table[:, 0], atol=0, rtol=0)
    for channel in range(8):
        plane = torch.nn.functional.interpolate(table[0, 1:, channel].view(1, 1, 4, 4), size=(6, 6), mode="bicubic")
        torch.testing.assert_close(resized[0, 1:, channel].view(6, 6), plane[0, 0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_tables_are_interpolated_in_float32(dtype):
    table = sincos_positions(64, 4).to(dtype)
    resized = positions_for_grid(table, 7)
    assert resized.dtype == dtype
    expected = positions_for_grid(table.float(), 7).to(dtype)
    torch.testing.assert_close(resized, expected, atol=0, rtol=0)


def test_other_size_equals_interpolation_by_hand(small_config, randomise, images):
    """A 96 pixel image in a 64 pixel model is that image in a 96 pixel model that holds the interpolated table."""
    model = randomise(RetFoundModel(small_config()))
    native = RetFoundModel(small_config(image_size=96)).eval()
    weights = model.state_dict()
    table = weights["embeddings.position_embeddings"]
    grid = table[0, 1:].T.reshape(1, 64, 4, 4)
    resized = functional.interpolate(grid, size=(6, 6), mode="bicubic", align_corners=False)
    weights["embeddings.position_embeddings"] = torch.cat([table[:, :1], resized.flatten(2).transpose(1, 2)], dim=1)
    native.load_state_dict(weights)
    out = model(images(size=96), interpolate_pos_encoding=True)
    assert out.last_hidden_state.shape == (2, 37, 64)
    torch.testing.assert_close(out.last_hidden_state, native(images(size=96)).last_hidden_state, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(64, 96), (96, 32)])
def test_images_that_are_not_square_equal_stock(size, pretraining_folder):
    folder, pixels = pretraining_folder(), torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    stock = transformers.ViTMAEModel.from_pretrained(folder, mask_ratio=0.0).eval()
    count = size[0] * size[1] // 16**2
    with torch.no_grad():
        expected = stock(pixels, noise=torch.arange(count).float().expand(2, -1), interpolate_pos_encoding=True)
        out = AutoModel.from_pretrained(folder).eval()(pixels, interpolate_pos_encoding=True)
        autoencoder, given = AutoModelForPreTraining.from_pretrained(folder).eval(), {"noise": torch.rand(2, count)}
        painted = autoencoder(pixels, interpolate_pos_encoding=True, **given)
        hidden = autoencoder(pixels, interpolate_pos_encoding=True, predict_all=False, **given)
    torch.testing.assert_close(out.last_hidden_state, expected.last_hidden_state, atol=1e-5, rtol=1e-5)
    assert painted.logits.shape == (2, count, 16**2 * 3)
    torch.testing.assert_close(hidden.loss, painted.loss)


def test_autoencoder_interpolates_both_tables(small_config, randomise, images):
    model = randomise(RetFoundForPreTraining(small_config()))
    native = RetFoundForPreTraining(small_config(image_size=96)).eval()
    weights = model.state_dict()
    for name in ("vit.embeddings.position_embeddings", "decoder.decoder_pos_embed"):
        weights[name] = positions_for_grid(weights[name], 6)
    native.load_state_dict(weights)
    noise = torch.rand(2, 36)
    expected = native(images(size=96), noise=noise)
    out = model(images(size=96), noise=noise, interpolate_pos_encoding=True)
    torch.testing.assert_close(out.loss, expected.loss)
    torch.testing.assert_close(out.logits, expected.logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cls", [RetFoundModel, RetFoundForPreTraining, RetFoundForImageClassification])
def test_positions_by_formula_are_computed_for_another_size(small_config, images, tmp_path, cls, dtype):
    torch.manual_seed(0)
    cls(small_config()).to(dtype).save_pretrained(tmp_path)
    before = cls.from_pretrained(tmp_path, dtype=dtype)
    model, report = cls.from_pretrained(tmp_path, image_size=96, dtype=dtype, output_loading_info=True)
    assert not report["mismatched_keys"] and not report["missing_keys"]
    for name, value in model.state_dict().items():
        expected = before.state_dict()[name]
        if "pos" in name.rsplit(".", 1)[-1]:
            expected = sincos_positions(expected.shape[-1], 6).to(dtype)
        assert torch.equal(value, expected), name
    model(images(size=96))
    model.save_pretrained(tmp_path / "larger")
    assert cls.from_pretrained(tmp_path / "larger").config.image_size == 96


@pytest.mark.parametrize("config", [False, True])
def test_trained_positions_are_interpolated_for_another_size(small_config, randomise, images, tmp_path, config):
    model = randomise(RetFoundForImageClassification(small_config(num_labels=3)))
    model.save_pretrained(tmp_path)
    options = {"image_size": 96}
    if config:
        options = {"config": transformers.AutoConfig.from_pretrained(tmp_path, **options)}
    larger = AutoModelForImageClassification.from_pretrained(tmp_path, **options)
    expected = model(images(size=96), interpolate_pos_encoding=True).logits
    torch.testing.assert_close(larger(images(size=96)).logits, expected, atol=1e-6, rtol=1e-6)
    assert all(p.requires_grad for name, p in larger.named_parameters() if not name.startswith("vit.layernorm"))
    model.resize_positions(96)
    torch.testing.assert_close(model(images(size=96)).logits, expected, atol=0, rtol=0)


def test_a_size_that_training_interpolated_to_is_interpolated_to_again(small_config, images, tmp_path):
    """A configuration beside an adapter, whose base has the table of the other size."""
    model = RetFoundForImageClassification(small_config())
    model.save_pretrained(tmp_path)
    model.resize_positions(96)
    again = RetFoundForImageClassification.from_pretrained(tmp_path, config=model.config)
    torch.testing.assert_close(again(images(size=96)).logits, model.eval()(images(size=96)).logits, atol=0, rtol=0)
    with pytest.raises(BadArgumentError) as error:
        model.resize_positions(100)
    assert (error.value.field, error.value.value) == ("image_size", 100)


def test_other_sizes_than_of_positions_stay_an_error(small_config, tmp_path):
    RetFoundForImageClassification(small_config(num_labels=3)).save_pretrained(tmp_path)
    with pytest.raises(RuntimeError) as error:
        RetFoundForImageClassification.from_pretrained(tmp_path, num_labels=2, image_size=96)
    assert "classifier.weight" in str(error.value) and "position" not in str(error.value)


@pytest.mark.parametrize("cls", [RetFoundModel, RetFoundForPreTraining, RetFoundForImageClassification])
@pytest.mark.parametrize("shape", [(2, 3, 64, 96), (2, 3, 70, 70), (2, 1, 64, 64), (3, 64, 64)])
def test_images_that_no_model_takes_are_refused(cls, shape, small_config):
    with pytest.raises(BadDataError) as error:
        cls(small_config())(torch.zeros(shape))
    assert " x ".join(map(str, shape[2:])) in str(error.value) or str(shape) in str(error.value)


@pytest.mark.parametrize("cls", [RetFoundModel, RetFoundForPreTraining, RetFoundForImageClassification])
@pytest.mark.parametrize("interpolate", [None, False])
def test_other_sizes_are_refused_unless_asked_for(cls, interpolate, small_config, images):
    """As stock ViT does."""
    model = cls(small_config())
    model(images(), interpolate_pos_encoding=interpolate)
    model(images(size=96), interpolate_pos_encoding=True)
    with pytest.raises(BadDataError) as error:
        model(images(size=96), interpolate_pos_encoding=interpolate)
    assert "96" in str(error.value) and "64" in str(error.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [64, 96])
def test_half_precision_weights_take_float32_pixels(dtype, size, small_config, randomise, images):
    classifier = randomise(RetFoundForImageClassification(small_config()))
    exact = classifier(images(size=size), interpolate_pos_encoding=True).logits
    half = classifier.to(dtype)(images(size=size), interpolate_pos_encoding=True).logits
    assert half.dtype == dtype
    assert torch.nn.functional.cosine_similarity(half.float().flatten(), exact.flatten(), dim=0) > 0.995
    autoencoder = randomise(RetFoundForPreTraining(small_config())).to(dtype)
    for predict_all in (True, False):
        outputs = autoencoder(images(size=size), interpolate_pos_encoding=True, predict_all=predict_all)
        outputs.loss.backward()
        assert outputs.loss.isfinite()


# One parameter of every part: our name, and how stock transformers 5 calls it in memory.
STOCK_NAMES = {
    "vit.embeddings.cls_token": "vit.embeddings.cls_token",
    "vit.embeddings.patch_embeddings.projection.weight": "vit.embeddings.patch_embeddings.projection.weight",
    "vit.encoder.layer.0.attention.attention.query.weight": "vit.layers.0.attention.q_proj.weight",
    "vit.encoder.layer.1.attention.attention.key.weight": "vit.layers.1.attention.k_proj.weight",
    "vit.encoder.layer.2.attention.attention.value.bias": "vit.layers.2.attention.v_proj.bias",
    "vit.encoder.layer.0.attention.output.dense.weight": "vit.layers.0.attention.o_proj.weight",
    "vit.encoder.layer.0.layernorm_after.weight": "vit.layers.0.layernorm_after.weight",
    "vit.encoder.layer.1.output.dense.weight": "vit.layers.1.mlp.fc2.weight",
    "vit.layernorm.weight": "vit.layernorm.weight",
    "decoder.mask_token": "decoder.mask_token",
    "decoder.decoder_layers.0.intermediate.dense.weight": "decoder.decoder_layers.0.mlp.fc1.weight",
    "decoder.decoder_pred.bias": "decoder.decoder_pred.bias",
}


@pytest.fixture
def both(pretraining_folder):
    def load(**overrides):
        folder = pretraining_folder(**overrides)
        stock = transformers.ViTMAEForPreTraining.from_pretrained(folder).eval()
        assert stock.config.norm_pix_loss is overrides.get("norm_pix_loss", True)
        return RetFoundForPreTraining.from_pretrained(folder).eval(), stock

    return load


@pytest.mark.parametrize("norm_pix_loss", [True, False])
@pytest.mark.parametrize("mask_ratio", [0.75, 0.85])
def test_outputs_and_gradients_equal_stock(both, images, norm_pix_loss, mask_ratio):
    ours, stock = both(norm_pix_loss=norm_pix_loss, mask_ratio=mask_ratio)
    pixels, noise = images(3), torch.rand(3, 16, generator=torch.Generator().manual_seed(1))
    mine, theirs = ours(pixels, noise=noise), stock(pixels, noise=noise)
    assert type(mine) is type(theirs)
    for name in ("mask", "ids_restore"):
        assert torch.equal(mine[name], theirs[name]), name
    torch.testing.assert_close(mine.loss, theirs.loss, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(mine.logits, theirs.logits, atol=1e-5, rtol=1e-5)
    mine.loss.backward()
    theirs.loss.backward()
    gradients, expected = dict(ours.named_parameters()), dict(stock.named_parameters())
    for name, stock_name in STOCK_NAMES.items():
        assert expected[stock_name].grad.abs().max() > 0
        found = gradients[name].grad
        torch.testing.assert_close(found, expected[stock_name].grad, atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.parametrize("size", [64, 96])
@pytest.mark.parametrize("options", [{}, {"norm_pix_loss": False}, {"mask_ratio": 0.4}, {"mask_ratio": 0.85}])
def test_hidden_patches_alone_give_the_same_loss_and_gradients(small_config, randomise, images, size, options):
    model, pixels = randomise(RetFoundForPreTraining(small_config(**options))), images(3, size)
    noise = torch.rand(3, (size // 16) ** 2, generator=torch.Generator().manual_seed(1))
    found = {}
    for predict_all in (True, False):
        model.zero_grad()
        outputs = model(pixels, noise=noise, interpolate_pos_encoding=True, predict_all=predict_all)
        outputs.loss.backward()
        found[predict_all] = outputs, {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    whole, part = found[True][0], found[False][0]
    assert part.logits is None and torch.equal(part.mask, whole.mask)
    torch.testing.assert_close(part.loss, whole.loss, atol=0, rtol=1e-6)
    for name, gradient in found[True][1].items():
        torch.testing.assert_close(found[False][1][name], gradient, atol=1e-7, rtol=1e-4, msg=name)


def test_the_same_seed_draws_the_same_mask_as_stock(both, images):
    ours, stock = both()
    torch.manual_seed(7)
    mine = ours(images(4))
    torch.manual_seed(7)
    theirs = stock(images(4))
    assert torch.equal(mine.mask, theirs.mask)
    torch.testing.assert_close(mine.loss, theirs.loss)
    assert not torch.equal(mine.mask, ours(images(4)).mask)


def test_positions_are_frozen_and_everything_else_learns(small_config, images):
    model = RetFoundForPreTraining(small_config())
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {"vit.embeddings.position_embeddings", "decoder.decoder_pos_embed"}
    model(images()).loss.backward()
    without = {name for name, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert without == set()


LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 1.5, -0.5], [1.0, 1.0, 1.0], [-2.0, 0.3, 3.0]])
CLASSES = torch.tensor([0, 1, 2, 1])


def settings(small_config, problem_type="single_label_classification", num_labels=3, **options):
    return small_config(problem_type=problem_type, num_labels=num_labels, **options)


def log_softmax(row: list[float]) -> list[float]:
    total = math.log(sum(math.exp(value) for value in row))
    return [value - total for value in row]


def test_label_smoothing_by_hand(small_config):
    rows = [log_softmax(row) for row in LOGITS.tolist()]
    expected = -sum(
        0.9 * row[label] + 0.1 * sum(row) / 3 for row, label in zip(rows, CLASSES.tolist(), strict=True)
    ) / 4  # fmt: skip
    loss = classification_loss(LOGITS, CLASSES, settings(small_config), label_smoothing=0.1)
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_class_weights_by_hand(small_config):
    """Each image counts by the weight of its class, whatever else is in the batch."""
    weights = [1.0, 3.0, 0.5]
    rows = [log_softmax(row) for row in LOGITS.tolist()]
    labels = CLASSES.tolist()
    expected = -sum(weights[label] * row[label] for row, label in zip(rows, labels, strict=True)) / len(labels)
    config, options = settings(small_config), {"class_weights": weights}
    loss = classification_loss(LOGITS, CLASSES, config, **options)
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    each = [classification_loss(LOGITS[i : i + 1], CLASSES[i : i + 1], config, **options) for i in range(len(labels))]
    torch.testing.assert_close(torch.stack(each).mean(), loss)
    hard = functional.one_hot(CLASSES, 3).float()
    torch.testing.assert_close(classification_loss(LOGITS, hard, config, **options), loss)


def test_soft_labels_by_hand_and_as_hard_ones(small_config):
    soft = torch.tensor([[0.7, 0.3, 0.0], [0.0, 1.0, 0.0], [0.2, 0.2, 0.6], [0.5, 0.0, 0.5]])
    expected = -(soft * functional.log_softmax(LOGITS, dim=1)).sum(dim=1).mean()
    torch.testing.assert_close(classification_loss(LOGITS, soft, settings(small_config)), expected)
    hard = functional.one_hot(CLASSES, 3).float()
    found, expected = (
        classification_loss(LOGITS, labels, settings(small_config), label_smoothing=0.1) for labels in (hard, CLASSES)
    )
    torch.testing.assert_close(found, expected)


def test_multi_label_weights_and_smoothing(small_config):
    labels = torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])
    config = settings(small_config, "multi_label_classification")
    options = {"class_weights": [1.0, 4.0, 2.0], "label_smoothing": 0.2}
    targets = labels * 0.8 + 0.1
    probability = LOGITS.sigmoid()
    positive = torch.tensor([1.0, 4.0, 2.0])
    expected = -(positive * targets * probability.log() + (1 - targets) * (1 - probability).log()).mean()
    torch.testing.assert_close(classification_loss(LOGITS, labels, config, **options), expected)


def test_target_scale_divides_the_errors(small_config):
    config = settings(small_config, "regression", num_labels=2)
    logits, labels = torch.tensor([[50.0, 1.0], [70.0, 2.0]]), torch.tensor([[60.0, 1.5], [70.0, 1.0]])
    loss = classification_loss(logits, labels, config, target_scale=[10.0, 0.5])
    assert loss.item() == pytest.approx((1 + 1 + 0 + 4) / 4)


def test_half_precision_logits_give_a_float32_loss(small_config):
    loss = classification_loss(LOGITS.bfloat16(), CLASSES, settings(small_config))
    assert loss.dtype == torch.float32


@pytest.mark.parametrize(
    ("labels", "expected"),
    [(torch.tensor([0.5]), "regression"), (torch.tensor([1]), "single_label_classification"),
     (torch.tensor([[1.0, 0.0, 1.0]]), "multi_label_classification")],
)  # fmt: skip
def test_problem_type_follows_the_labels(small_config, labels, expected):
    num_labels = 1 if expected == "regression" else 3
    logits = torch.randn(1, num_labels, generator=torch.Generator().manual_seed(0))
    config = small_config(num_labels=num_labels)
    found = classification_loss(logits, labels, config)
    assert config.problem_type == expected
    assert torch.equal(
        found, classification_loss(logits, labels, settings(small_config, expected, num_labels=num_labels))
    )


def test_labels_that_fail_settle_no_problem_type(small_config):
    config = small_config(num_labels=3)
    with pytest.raises(RuntimeError):
        classification_loss(LOGITS, torch.ones(4, 2), config)
    assert config.problem_type is None


@pytest.mark.parametrize(
    ("labels", "kind"),
    [(torch.tensor([[1.0, 0.0, 1.0]] * 2), "multi_label_classification"), (torch.tensor([[50.0]] * 2), "regression"),
     (torch.tensor([2, 0]), "single_label_classification")],
)  # fmt: skip
def test_the_problem_type_of_a_training_is_saved(small_config, images, labels, kind, tmp_path):
    outputs = labels.shape[1] if labels.ndim == 2 else 3
    model = RetFoundForImageClassification(small_config(num_labels=outputs)).train()
    model(images(), labels=labels).loss.backward()
    model.save_pretrained(tmp_path)
    RetFoundImageProcessor.for_image_size(64).save_pretrained(tmp_path)
    found = retfound_hf.load_classifier(tmp_path)
    assert (found.model.config.problem_type, found.problem_type) == (kind, kind)


def test_one_output_without_a_problem_type_is_a_number(small_config):
    assert problem_type_of(small_config(num_labels=1)) == "regression"
    assert problem_type_of(small_config(num_labels=2)) == "single_label_classification"


OLD_LOSS = {"class_weights": [1.4, 0.8, 1.0], "label_smoothing": 0.1, "target_scale": None}


@pytest.mark.parametrize("training", [False, True])
def test_options_of_the_loss_hold_for_the_training_they_were_given_to(small_config, randomise, images, training):
    model = randomise(RetFoundForImageClassification(small_config(num_labels=3, **OLD_LOSS))).train(training)
    labels = torch.tensor([0, 1])
    out = model(images(), labels=labels)
    options = {"weight": torch.tensor([1.4, 0.8, 1.0]), "label_smoothing": 0.1, "reduction": "sum"} if training else {}
    expected = functional.cross_entropy(out.logits, labels, **options) / (2 if training else 1)
    torch.testing.assert_close(out.loss, expected)


@pytest.mark.parametrize("classes", [2, 3])
def test_options_of_the_loss_stay_with_their_training(small_config, images, tmp_path, classes):
    """Neither a new folder nor one of before, which still holds them, hands them on."""
    RetFoundForImageClassification(small_config(num_labels=3, **OLD_LOSS)).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    content = json.loads(path.read_text())
    assert not OLD_LOSS.keys() & content.keys()
    path.write_text(json.dumps({**content, **OLD_LOSS}))
    model = AutoModelForImageClassification.from_pretrained(
        tmp_path, num_labels=classes, ignore_mismatched_sizes=True
    ).train()
    labels = torch.tensor([0, 1])
    out = model(images(), labels=labels)
    torch.testing.assert_close(out.loss, functional.cross_entropy(out.logits, labels))
    again = AutoModelForImageClassification.from_pretrained(tmp_path, label_smoothing=0.3).config
    assert (again.label_smoothing, again.class_weights) == (0.3, None)


@pytest.fixture
def calibrated(small_config, randomise, tmp_path):
    """Folder of a calibrated classifier with thresholds."""
    folder = tmp_path / "calibrated"
    randomise(RetFoundForImageClassification(small_config(calibration_temperature=1.7))).save_pretrained(folder)
    (folder / POINTS_FILE).write_text("{}")
    return folder


def saved_again(model, folder):
    """The calibration temperature in the folder into which `model` is saved, and whether there are thresholds."""
    model.save_pretrained(folder)
    return json.loads((folder / "config.json").read_text())["calibration_temperature"], (folder / POINTS_FILE).exists()


def test_a_head_that_stays_keeps_its_record(calibrated, images):
    model = AutoModelForImageClassification.from_pretrained(calibrated)
    model(images(), labels=torch.tensor([0, 1])).loss.backward()  # as explanations do
    with torch.no_grad():
        model.train()(images())
    assert saved_again(model, calibrated) == (1.7, True)


def test_a_trained_head_loses_its_record(calibrated, images):
    """By whatever loss it is trained."""
    model = AutoModelForImageClassification.from_pretrained(calibrated).train()
    functional.cross_entropy(model(images()).logits, torch.tensor([0, 1])).backward()
    assert saved_again(model, calibrated) == (1.0, False)


def test_a_new_head_has_no_record(calibrated):
    model = AutoModelForImageClassification.from_pretrained(calibrated, num_labels=5, ignore_mismatched_sizes=True)
    assert saved_again(model, calibrated) == (1.0, False)


def test_an_encoder_alone_has_no_record(calibrated, tmp_path):
    AutoModel.from_pretrained(calibrated).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["calibration_temperature"] == 1


@pytest.mark.parametrize("head", [torch.nn.Identity(), torch.nn.Sequential(torch.nn.Linear(64, 5), torch.nn.ReLU())])
def test_any_module_serves_as_head_under_autocast(small_config, randomise, images, head):
    model = randomise(RetFoundForImageClassification(small_config())).train()
    model.classifier = head
    with torch.autocast("cpu", torch.bfloat16):
        found = model(images()).logits
    mean = model.vit(images()).patch_mean
    torch.testing.assert_close(found, head(model.fc_norm(mean)), atol=0.05, rtol=0.05)
    assert found.dtype == torch.float32


def test_wrong_number_of_weights_is_refused(small_config):
    with pytest.raises(BadArgumentError) as error:
        classification_loss(LOGITS, CLASSES, settings(small_config), class_weights=[1.0, 2.0])
    assert error.value.field == "class_weights"


@pytest.mark.parametrize(
    ("problem_type", "labels"),
    [("single_label_classification", torch.tensor([0, 2])),
     ("multi_label_classification", torch.tensor([[0.0, 1, 1], [1, 0, 0]])),
     ("regression", torch.tensor([[0.1, 0.2, 0.3], [1.0, 2.0, 3.0]]))],
)  # fmt: skip
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


def test_head_starts_near_zero_over_a_pretrained_encoder(pretraining_folder, images):
    folder = pretraining_folder(hidden_size=512)
    torch.manual_seed(0)
    model = RetFoundForImageClassification.from_pretrained(folder, num_labels=20).eval()
    assert model.classifier.weight.std().item() == pytest.approx(2e-5, rel=0.05)
    assert not model.classifier.bias.any()
    assert (model.fc_norm.weight == 1).all() and not model.fc_norm.bias.any()
    logits = model(images()).logits
    assert 0 < logits.abs().max() < 0.01


def test_files_bear_the_names_of_transformers_4(pretraining_folder, small_config, tmp_path):
    parts = (
        "attention.attention.query", "attention.attention.key", "attention.attention.value", "attention.output.dense",
        "intermediate.dense", "output.dense", "layernorm_before", "layernorm_after",
    )  # fmt: skip

    def named(*layers):
        return {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}

    encoder = {"vit.embeddings.cls_token", "vit.embeddings.position_embeddings"} | named(
        "vit.layernorm", "vit.embeddings.patch_embeddings.projection",
        *(f"vit.encoder.layer.{index}.{part}" for index in range(3) for part in parts),
    )  # fmt: skip
    decoder = {"decoder.mask_token", "decoder.decoder_pos_embed"} | named(
        "decoder.decoder_embed", "decoder.decoder_norm", "decoder.decoder_pred",
        *(f"decoder.decoder_layers.{index}.{part}" for index in range(2) for part in parts),
    )  # fmt: skip
    assert load_file(pretraining_folder() / "model.safetensors").keys() == encoder | decoder
    RetFoundForImageClassification(small_config()).save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors").keys() == encoder | named("fc_norm", "classifier")


def test_published_size():
    """329.5 million parameters in 398 tensors once q, k and v are fused, as in the official file."""
    with torch.device("meta"):
        model = RetFoundForPreTraining(retfound_hf.RetFoundConfig())
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(329.5e6, abs=0.05e6)
    names = [name for name, _ in model.named_parameters()]
    fused = [name for name in names if ".query." not in name and ".key." not in name]
    assert len(fused) == 398


def test_one_folder_serves_every_auto_class(pretraining_folder, images):
    folder = pretraining_folder()
    assert {path.name for path in folder.iterdir()} >= {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert type(transformers.AutoConfig.from_pretrained(folder)) is retfound_hf.RetFoundConfig
    assert type(transformers.AutoImageProcessor.from_pretrained(folder)) is RetFoundImageProcessor
    encoder = AutoModel.from_pretrained(folder)
    autoencoder = AutoModelForPreTraining.from_pretrained(folder)
    classifier = AutoModelForImageClassification.from_pretrained(folder, num_labels=5)
    assert [type(model) for model in (encoder, autoencoder, classifier)] == [
        RetFoundModel, RetFoundForPreTraining, RetFoundForImageClassification,
    ]  # fmt: skip
    expected = encoder(images()).patch_mean
    for model in (autoencoder, classifier):
        torch.testing.assert_close(model.vit(images()).patch_mean, expected, atol=0, rtol=0)
    assert classifier(images()).logits.shape == (2, 5)


@pytest.mark.parametrize(
    ("auto", "cls"),
    [(AutoModel, RetFoundModel), (AutoModelForPreTraining, RetFoundForPreTraining),
     (AutoModelForImageClassification, RetFoundForImageClassification)],
)  # fmt: skip
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


@pytest.mark.parametrize(
    "values",
    [{"hidden_size": 100, "num_attention_heads": 16}, {"decoder_hidden_size": 36, "decoder_num_attention_heads": 8},
     {"hidden_size": 66, "num_attention_heads": 3}, {"image_size": 100}, {"image_size": (64, 64)}, {"mask_ratio": 1.0},
     {"drop_path_rate": -0.1}, {"label_smoothing": 1.5}, {"calibration_temperature": 0.0}, {"head_norm": "triple"},
     {"modality": "mri"}, {"calibration_slope": [1.0]},
     {"calibration_slope": [0.0], "calibration_intercept": [0.0]}],
)  # fmt: skip
def test_impossible_configurations_are_refused(values):
    with pytest.raises(BadArgumentError) as error:
        retfound_hf.RetFoundConfig(**values)
    name, value = next(iter(values.items()))
    assert (error.value.field, error.value.value) == (name, value)
    with pytest.raises(BadArgumentError) as error:
        retfound_hf.RetFoundConfig.from_preset("retfound")
    assert error.value.accepted == tuple(retfound_hf.PRESETS)


# Without dependencies, so that torch and the rest stay those of this environment.
PACKAGES = ["transformers==4.57.6", "tokenizers>=0.22,<0.23", "huggingface_hub>=0.34,<1"]
SCRIPT = """
import json, sys
import torch, transformers
folder, output = sys.argv[1:]
model, report = transformers.ViTMAEForPreTraining.from_pretrained(folder, output_loading_info=True)
given = torch.load(folder + "/given.pt")
with torch.no_grad():
    loss = model.eval()(given["pixel_values"], noise=given["noise"]).loss.item()
report = {name: [str(key) for key in keys] for name, keys in report.items()}
json.dump({"version": transformers.__version__, "loss": loss, **report}, open(output, "w"))
"""


@pytest.fixture(scope="module")
def transformers_457(tmp_path_factory) -> Path:
    """A folder with transformers 4.57: `RETFOUND_TF457_TARGET` where that was made before, else installed here."""
    if made := os.environ.get("RETFOUND_TF457_TARGET"):
        return Path(made)
    target = tmp_path_factory.mktemp("transformers-4.57")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), *PACKAGES]
    done = subprocess.run(pip, capture_output=True, text=True, timeout=600)
    if done.returncode:
        pytest.skip(f"transformers 4.57 cannot be installed here: {done.stderr.strip().splitlines()[-1]}")
    return target


@pytest.mark.slow
@pytest.mark.parametrize("mask_ratio", [0.75, 0.85])
def test_same_loss_under_transformers_457(mask_ratio, pretraining_folder, images, transformers_457, tmp_path):
    folder = pretraining_folder(mask_ratio=mask_ratio)
    given = {"pixel_values": images(3), "noise": torch.rand(3, 16, generator=torch.Generator().manual_seed(1))}
    torch.save(given, folder / "given.pt")
    with torch.no_grad():
        expected = RetFoundForPreTraining.from_pretrained(folder).eval()(**given).loss.item()
    output = tmp_path / "found.json"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), str(output)],
        env={**os.environ, "PYTHONPATH": str(transformers_457), "USE_TF": "0", "USE_FLAX": "0"}, cwd=tmp_path,
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(output.read_text())
    assert found["version"] == "4.57.6" != metadata.version("transformers")
    assert found["missing_keys"] == found["unexpected_keys"] == found["mismatched_keys"] == []
    assert found["loss"] == pytest.approx(expected, abs=1e-6)
