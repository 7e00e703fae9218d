"""`RetFoundModel`: deterministic, raster order, the official feature vector."""

import pytest
import torch
from torch.nn import functional
from transformers import AutoModel, ViTMAEModel

from retfound_hf import RetFoundModel


def test_every_call_gives_the_same_output(small_config, randomise, images):
    model = randomise(RetFoundModel(small_config()))
    first, second = model(images()), model(images())
    assert torch.equal(first.last_hidden_state, second.last_hidden_state)
    assert torch.equal(first.pooler_output, second.pooler_output)
    assert torch.equal(model.train()(images()).pooler_output, first.pooler_output)


def test_output_shapes(small_config, images):
    out = RetFoundModel(small_config())(images(), output_hidden_states=True)
    assert out.last_hidden_state.shape == (2, 17, 64)
    assert out.pooler_output.shape == out.patch_mean.shape == (2, 64)
    assert [state.shape for state in out.hidden_states] == [(2, 17, 64)] * 4
    assert out.attentions is None


def test_equals_the_stock_encoder_put_back_in_order(pretraining_folder, images):
    """Stock ViTMAE shuffles the patches even when it masks none; un-shuffled, they are ours."""
    folder = pretraining_folder()
    stock = ViTMAEModel.from_pretrained(folder, mask_ratio=0.0).eval()
    expected = stock(images())
    order = expected.ids_restore[..., None].expand(-1, -1, 64)
    raster = torch.cat([expected.last_hidden_state[:, :1], expected.last_hidden_state[:, 1:].gather(1, order)], dim=1)
    assert not torch.allclose(expected.last_hidden_state, raster, atol=1e-2)
    ours = AutoModel.from_pretrained(folder).eval()(images())
    torch.testing.assert_close(ours.last_hidden_state, raster, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("patch", [0, 5, 15])
def test_a_changed_patch_changes_its_own_token_most(small_config, images, patch):
    model = RetFoundModel(small_config()).eval()
    row, column = divmod(patch, 4)
    changed = images()
    changed[:, :, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16] += 3
    difference = (model(changed).last_hidden_state - model(images()).last_hidden_state).norm(dim=-1)
    assert (difference.argmax(dim=1) == 1 + patch).all()


def test_pooler_output_is_the_mean_of_the_patches_normalised_without_affine(small_config, randomise, images):
    model = randomise(RetFoundModel(small_config()))
    out = model(images(), output_hidden_states=True)
    mean = out.hidden_states[-1][:, 1:].mean(dim=1)
    variance = mean.var(dim=1, unbiased=False, keepdim=True)
    by_hand = (mean - mean.mean(dim=1, keepdim=True)) / (variance + 1e-6).sqrt()
    torch.testing.assert_close(out.patch_mean, mean)
    torch.testing.assert_close(out.pooler_output, by_hand, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out.pooler_output.mean(dim=1), torch.zeros(2), atol=1e-5, rtol=0)


def test_last_hidden_state_is_after_the_final_norm(small_config, randomise, images):
    model = randomise(RetFoundModel(small_config()))
    out = model(images(), output_hidden_states=True)
    norm = model.layernorm
    expected = functional.layer_norm(out.hidden_states[-1], (64,), norm.weight, norm.bias, eps=1e-6)
    torch.testing.assert_close(out.last_hidden_state, expected)


def test_images_of_a_batch_do_not_meet(small_config, randomise, images):
    model = randomise(RetFoundModel(small_config()))
    batch = images(4)
    alone = torch.cat([model(image[None]).pooler_output for image in batch])
    torch.testing.assert_close(model(batch).pooler_output, alone, atol=1e-5, rtol=1e-5)


def test_configuration_switches_and_tuples(small_config, images):
    model = RetFoundModel(small_config(output_hidden_states=True)).eval()
    assert len(model(images()).hidden_states) == 4
    assert model(images(), output_hidden_states=False).hidden_states is None
    as_tuple = model(images(), return_dict=False, output_hidden_states=False)
    assert isinstance(as_tuple, tuple) and as_tuple[0].shape == (2, 17, 64)
