import pytest
import torch
from torch import Tensor, nn
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from retfound_hf import RetFoundForImageClassification, RetFoundForPreTraining, RetFoundModel
from retfound_hf.errors import BadArgumentError, BadDataError, BadModelError
from retfound_hf.models.reconstruction import Reconstruction, reconstruct

MEAN, STD = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


@pytest.fixture
def standardised():
    """Makes images of values well within 0..1, standardised, and the values themselves."""

    def make(count: int = 3, size: int = 64, seed: int = 0) -> tuple[Tensor, Tensor]:
        values = 0.1 + 0.8 * torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))
        return (values - MEAN) / STD, values

    return make


@pytest.fixture(params=["retfound", "stock"])
def make_model(request, small_config, randomise):
    """Makes a masked autoencoder of 16 patches, ours or that of transformers."""

    def make(**overrides) -> ViTMAEForPreTraining:
        config = small_config(**overrides)
        if request.param == "retfound":
            return randomise(RetFoundForPreTraining(config))
        stock = {name: value for name, value in config.to_dict().items() if name in ViTMAEConfig().to_dict()}
        return randomise(ViTMAEForPreTraining(ViTMAEConfig(**{**stock, "model_type": "vit_mae"})))

    return make


def noise_for(count: int, patches: int = 16, seed: int = 5) -> Tensor:
    return torch.rand(count, patches, generator=torch.Generator().manual_seed(seed))


def patches_of(values: Tensor, patch: int = 16) -> Tensor:
    """(count, grid, grid, channels, patch, patch), by other means than the model's patchify."""
    return values.unfold(2, patch, patch).unfold(3, patch, patch).permute(0, 2, 3, 1, 4, 5)


class Oracle(nn.Module):
    """Stands in for the decoder's last layer: the exact target, whatever the tokens."""

    def __init__(self, target: Tensor):
        super().__init__()
        self.target = target

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(self.target[:, :1]), self.target], dim=1)


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_exact_predictions_paint_the_original(make_model, standardised, norm_pix_loss):
    pixel_values, values = standardised()
    model = make_model(norm_pix_loss=norm_pix_loss)
    target = patches_of(pixel_values).permute(0, 1, 2, 4, 5, 3).flatten(3).flatten(1, 2)
    if norm_pix_loss:
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    model.decoder.decoder_pred = Oracle(target)
    found = reconstruct(model, pixel_values, noise_for(3))
    for name in ("original", "predicted", "reconstructed"):
        assert torch.allclose(getattr(found, name), values, atol=1e-4), name
    assert found.error.max() < 1e-8
    model.decoder.decoder_pred = Oracle(target + 0.5)
    found = reconstruct(model, pixel_values, noise_for(3))
    assert torch.allclose(found.error[found.mask], torch.tensor(0.25), atol=1e-4)
    shift = (
        0.5 * STD[:, 0, 0] * (patches_of(pixel_values).var(dim=(3, 4, 5)).sqrt()[..., None] if norm_pix_loss else 1)
    )
    expected = (patches_of(values) + shift[..., None, None]).clamp(0, 1)
    assert torch.allclose(patches_of(found.predicted), expected, atol=1e-4)


@pytest.mark.parametrize("norm_pix_loss", [True, False])
@pytest.mark.parametrize("size", [64, 96])
def test_the_error_of_the_hidden_patches_averages_to_the_models_loss(make_model, standardised, norm_pix_loss, size):
    model = make_model(norm_pix_loss=norm_pix_loss)
    pixel_values, _ = standardised(size=size)
    noise = noise_for(3, (size // 16) ** 2)
    found = reconstruct(model, pixel_values, noise)
    with torch.no_grad():
        outputs = model(pixel_values, noise=noise, interpolate_pos_encoding=size != 64)
    assert found.error[found.mask].mean().item() == pytest.approx(outputs.loss.item(), rel=1e-5)
    assert torch.equal(found.mask.flatten(1), outputs.mask.bool())
    assert (found.error[~found.mask] == 0).all() and (found.error[found.mask] > 0).all()
    assert found.error.shape == found.mask.shape == (3, size // 16, size // 16)


def test_visible_patches_are_the_original_to_the_bit_and_hidden_ones_gray_or_painted(make_model, standardised):
    pixel_values, values = standardised()
    found = reconstruct(make_model(), pixel_values, noise_for(3))
    assert torch.allclose(found.original, values, atol=1e-6)
    original, masked, reconstructed, predicted = (
        patches_of(getattr(found, name)) for name in ("original", "masked", "reconstructed", "predicted")
    )
    assert torch.equal(masked[~found.mask], original[~found.mask])
    assert torch.equal(reconstructed[~found.mask], original[~found.mask])
    assert (masked[found.mask] == 0.5).all()
    assert torch.equal(reconstructed[found.mask], predicted[found.mask])
    assert not torch.allclose(predicted[~found.mask], original[~found.mask], atol=0.05)


@pytest.mark.parametrize("ratio, hidden", [(0.75, 12), (0.85, 14), (0.5, 8), (0.0, 0)])
def test_the_mask_hides_the_patches_of_highest_noise(make_model, standardised, ratio, hidden):
    noise = noise_for(3)
    found = reconstruct(make_model(mask_ratio=ratio), standardised()[0], noise)
    assert found.mask.dtype == torch.bool
    assert torch.equal(found.mask.flatten(1), noise.argsort(dim=1).argsort(dim=1) >= 16 - hidden)
    assert not any(getattr(found, name).isnan().any() for name in Reconstruction.__dataclass_fields__)


def test_flat_patches_have_no_undefined_pixels(make_model):
    found = reconstruct(make_model(norm_pix_loss=True), torch.zeros(1, 3, 64, 64), noise_for(1))
    assert found.error.isfinite().all() and found.predicted.isfinite().all()


def test_other_statistics_than_imagenets(make_model, standardised):
    _, values = standardised()
    found = reconstruct(make_model(), values * 2 - 1, noise_for(3), mean=[0.5] * 3, std=[0.5] * 3)
    assert torch.allclose(found.original, values, atol=1e-6)


def test_the_model_is_left_as_it_was(make_model, standardised):
    pixel_values, _ = standardised()
    model = make_model(hidden_dropout_prob=0.5)
    expected = reconstruct(model, pixel_values, noise_for(3))
    model.train()
    model.decoder.decoder_norm.eval()
    before = {name: module.training for name, module in model.named_modules()}
    found = reconstruct(model, pixel_values, noise_for(3))
    assert {name: module.training for name, module in model.named_modules()} == before
    assert torch.equal(found.predicted, expected.predicted) and not found.predicted.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    with pytest.raises(BadDataError):
        reconstruct(model, pixel_values[:, :1])
    assert model.training


def test_without_noise_the_global_generator_draws_the_mask(make_model, standardised):
    model, (pixel_values, _) = make_model(), standardised()
    masks = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        masks.append(reconstruct(model, pixel_values).mask)
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])


def test_a_model_in_half_precision_paints_nearly_the_same(make_model, standardised):
    model, (pixel_values, _) = make_model(), standardised()
    full = reconstruct(model, pixel_values, noise_for(3))
    half = reconstruct(model.to(torch.bfloat16), pixel_values, noise_for(3))
    assert torch.equal(half.original, full.original) and torch.equal(half.mask, full.mask)
    assert half.predicted.dtype == torch.float32
    assert (half.predicted - full.predicted).abs().mean() < 0.01


def test_bad_input_is_refused_in_one_line(small_config, images):
    model = RetFoundForPreTraining(small_config())
    for wrong in (RetFoundModel(small_config()), RetFoundForImageClassification(small_config())):
        with pytest.raises(BadModelError):
            reconstruct(wrong, images())
    for pixel_values in (images()[0], images(size=72), images()[..., :50]):
        with pytest.raises(BadDataError):
            reconstruct(model, pixel_values)
    with pytest.raises(BadArgumentError) as error:
        reconstruct(model, images(), torch.rand(2, 15))
    assert (error.value.field, error.value.value) == ("noise", (2, 15))
