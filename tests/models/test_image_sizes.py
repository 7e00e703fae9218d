import pytest
import torch
from torch.nn import functional

from retfound_hf import RetFoundForImageClassification, RetFoundForPreTraining, RetFoundModel
from retfound_hf.errors import BadDataError
from retfound_hf.models.modeling_retfound import positions_for_grid


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
    out = model(images(size=96))
    assert out.last_hidden_state.shape == (2, 37, 64)
    torch.testing.assert_close(out.last_hidden_state, native(images(size=96)).last_hidden_state, atol=1e-5, rtol=1e-5)


def test_autoencoder_interpolates_both_tables(small_config, randomise, images):
    model = randomise(RetFoundForPreTraining(small_config()))
    native = RetFoundForPreTraining(small_config(image_size=96)).eval()
    weights = model.state_dict()
    for name in ("vit.embeddings.position_embeddings", "decoder.decoder_pos_embed"):
        weights[name] = positions_for_grid(weights[name], 6)
    native.load_state_dict(weights)
    noise = torch.rand(2, 36)
    expected = native(images(size=96), noise=noise)
    out = model(images(size=96), noise=noise)
    torch.testing.assert_close(out.loss, expected.loss)
    torch.testing.assert_close(out.logits, expected.logits, atol=1e-5, rtol=1e-5)


def test_classifier_takes_other_sizes(small_config, images):
    model = RetFoundForImageClassification(small_config(num_labels=3))
    assert [model(images(size=size)).logits.shape for size in (32, 64, 128)] == [(2, 3)] * 3


@pytest.mark.parametrize("cls", [RetFoundModel, RetFoundForPreTraining, RetFoundForImageClassification])
@pytest.mark.parametrize("shape", [(2, 3, 64, 96), (2, 3, 70, 70), (2, 1, 64, 64), (3, 64, 64)])
def test_images_that_no_model_takes_are_refused(cls, shape, small_config):
    with pytest.raises(BadDataError) as error:
        cls(small_config())(torch.zeros(shape))
    assert " x ".join(map(str, shape[2:])) in str(error.value) or str(shape) in str(error.value)


@pytest.mark.parametrize("cls", [RetFoundModel, RetFoundForPreTraining, RetFoundForImageClassification])
def test_strict_about_the_size_when_asked(cls, small_config, images):
    model = cls(small_config())
    model(images(), interpolate_pos_encoding=False)
    with pytest.raises(BadDataError):
        model(images(size=96), interpolate_pos_encoding=False)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [64, 96])
def test_half_precision_weights_take_float32_pixels(dtype, size, small_config, randomise, images):
    classifier = randomise(RetFoundForImageClassification(small_config()))
    exact = classifier(images(size=size)).logits
    half = classifier.to(dtype)(images(size=size)).logits
    assert half.dtype == dtype
    assert torch.nn.functional.cosine_similarity(half.float().flatten(), exact.flatten(), dim=0) > 0.995
    autoencoder = randomise(RetFoundForPreTraining(small_config())).to(dtype)
    assert autoencoder(images(size=size)).loss.isfinite()


def test_loading_in_half_precision(pretraining_folder, images):
    model = RetFoundModel.from_pretrained(pretraining_folder(), dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert model(images()).pooler_output.dtype == torch.bfloat16
