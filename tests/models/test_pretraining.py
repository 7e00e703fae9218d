"""The masked autoencoder is the stock one: same folder, same numbers."""

import pytest
import torch
from transformers import ViTMAEForPreTraining

from retfound_hf import RetFoundConfig, RetFoundForPreTraining

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
        stock = ViTMAEForPreTraining.from_pretrained(folder).eval()
        assert stock.config.norm_pix_loss is overrides.get("norm_pix_loss", True)
        return RetFoundForPreTraining.from_pretrained(folder).eval(), stock

    return load


def test_is_a_vit_mae(small_config):
    assert isinstance(RetFoundForPreTraining(small_config()), ViTMAEForPreTraining)
    assert issubclass(RetFoundForPreTraining, ViTMAEForPreTraining)


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
        torch.testing.assert_close(
            gradients[name].grad,
            expected[stock_name].grad,
            atol=1e-6,
            rtol=1e-4,
            msg=lambda text, n=name: f"{n}: {text}",
        )


def test_the_same_seed_draws_the_same_mask_as_stock(both, images):
    ours, stock = both()
    torch.manual_seed(7)
    mine = ours(images(4))
    torch.manual_seed(7)
    theirs = stock(images(4))
    assert torch.equal(mine.mask, theirs.mask)
    torch.testing.assert_close(mine.loss, theirs.loss)
    assert not torch.equal(mine.mask, ours(images(4)).mask)


@pytest.mark.parametrize(("preset", "kept"), [("retfound-cfp", 49), ("retfound-oct", 29)])
def test_published_numbers_of_visible_patches(preset, kept, small_config):
    published = RetFoundConfig.from_preset(preset)
    assert (published.image_size // published.patch_size) ** 2 == 196
    model = RetFoundForPreTraining(small_config(mask_ratio=published.mask_ratio))
    visible, mask, restore = model.random_masking(torch.randn(2, 196, 8))
    assert visible.shape == (2, kept, 8)
    assert (mask == 0).sum(dim=1).tolist() == [kept, kept]
    assert torch.equal(restore.sort(dim=1).values, torch.arange(196).expand(2, -1))


def test_masking_keeps_the_patches_of_lowest_noise(small_config):
    model = RetFoundForPreTraining(small_config(mask_ratio=0.5))
    patches = torch.arange(4.0).view(1, 4, 1)
    visible, mask, restore = model.random_masking(patches, torch.tensor([[0.3, 0.9, 0.1, 0.5]]))
    assert visible.flatten().tolist() == [2, 0]
    assert mask.tolist() == [[0, 1, 0, 1]]
    assert restore.tolist() == [[1, 3, 0, 2]]


def test_loss_counts_masked_patches_alone(small_config, randomise, images):
    """Written out: per patch mean squared error against the target with zero mean and unit unbiased variance."""
    model = randomise(RetFoundForPreTraining(small_config()))
    pixels = images(2)
    out = model(pixels, noise=torch.rand(2, 16, generator=torch.Generator().manual_seed(1)))
    total, count = 0.0, 0
    for n in range(2):
        for patch in range(16):
            if out.mask[n, patch] == 0:
                continue
            row, column = divmod(patch, 4)
            square = pixels[n, :, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16]
            target = square.permute(1, 2, 0).flatten()  # pixels in raster order, colours innermost
            target = (target - target.mean()) / (target.var(unbiased=True) + 1e-6).sqrt()
            total += (out.logits[n, patch] - target).square().mean().item()
            count += 1
    assert count == 24
    assert out.loss.item() == pytest.approx(total / count, rel=1e-5)


def test_positions_are_frozen_and_everything_else_learns(small_config, images):
    model = RetFoundForPreTraining(small_config())
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {"vit.embeddings.position_embeddings", "decoder.decoder_pos_embed"}
    model(images()).loss.backward()
    without = {name for name, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert without == set()


def test_gives_hidden_states_and_attentions_of_the_visible_tokens(small_config, images):
    out = RetFoundForPreTraining(small_config())(images(), output_attentions=True, output_hidden_states=True)
    assert [state.shape for state in out.hidden_states] == [(2, 5, 64)] * 4
    assert [weights.shape for weights in out.attentions] == [(2, 4, 5, 5)] * 3
