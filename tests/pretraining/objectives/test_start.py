"""Networks that objectives start from: the same as stock transformers has, or the error that says why not."""

import json
import shutil

import pytest
import torch
from noise import with_noise
from safetensors.torch import load_file, save_file
from tiny import tiny_config
from transformers import (
    Dinov2Config,
    Dinov2Model,
    ViTConfig,
    ViTForImageClassification,
    ViTMAEForPreTraining,
    ViTModel,
)

from retfound_hf import RetFoundForImageClassification, RetFoundForPreTraining, RetFoundModel
from retfound_hf.errors import BadArgumentError, BadModelError, RetFoundError
from retfound_hf.models.configuration_retfound import PRESETS
from retfound_hf.models.patches import sincos_positions
from retfound_hf.pretraining.arguments import ModelArguments
from retfound_hf.pretraining.objectives.base import build_encoder
from retfound_hf.pretraining.objectives.mae import build_autoencoder

FROZEN = {"vit.embeddings.position_embeddings", "decoder.decoder_pos_embed"}
TINY = {"config_name": "retfound-tiny", "image_size": 64}
VIT = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip


def autoencoder(folder=None, **options):
    return build_autoencoder(ModelArguments(model_name_or_path=folder and str(folder), **options))


def encoder(folder=None, **options):
    return build_encoder(ModelArguments(model_name_or_path=folder and str(folder), **options))


@pytest.fixture
def stock(stock_config, tmp_path):
    """Makes a stock autoencoder whose parameters are all noise, and the folder that transformers 5 writes."""

    def make(**overrides):
        model = with_noise(ViTMAEForPreTraining(stock_config(**overrides)))
        model.save_pretrained(tmp_path / "stock")
        return model, tmp_path / "stock"

    return make


def use_old_names(folder):
    """The decoder's names of transformers 4.x, as facebook/vit-mae-large has them."""
    tensors = load_file(folder / "model.safetensors")
    renamed = {name.replace("decoder_encoder.layer.", "decoder_layers."): values for name, values in tensors.items()}
    assert len(set(renamed) - set(tensors)) == 16
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("names", ["5", "4"])
@pytest.mark.parametrize("preset", [None, "retfound-oct"])
def test_a_stock_folder_gives_the_stock_loss(stock, monkeypatch, names, preset):
    reference, folder = stock(mask_ratio=0.6, norm_pix_loss=False)
    if names == "4":
        use_old_names(folder)
    if preset:  # of these sizes, since a preset must fit the weights
        config = json.loads((folder / "config.json").read_text())
        sizes = {key: value for key, value in config.items() if "size" in key or "num_" in key}
        monkeypatch.setitem(PRESETS, preset, {**sizes, **PRESETS[preset]})
    model = autoencoder(folder, config_name=preset)
    assert model.training and isinstance(model, RetFoundForPreTraining)
    expected = (0.85, "oct") if preset else (0.75, None)
    assert (model.config.mask_ratio, model.config.modality) == expected
    # RETFound's settings take the place of ImageNet's; the stock model is given them to be compared.
    assert (model.config.norm_pix_loss, model.config.layer_norm_eps) == (True, 1e-6)
    reference.config.mask_ratio = reference.vit.embeddings.config.mask_ratio = expected[0]
    reference.config.norm_pix_loss = True
    for module in reference.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-6
    pixels, noise = torch.randn(3, 3, 32, 32), torch.rand(3, 16)
    with torch.no_grad():
        ours, theirs = model(pixels, noise=noise), reference(pixels, noise=noise)
    assert torch.equal(ours.mask, theirs.mask)
    assert ours.loss.item() == pytest.approx(theirs.loss.item(), abs=1e-5)
    torch.testing.assert_close(ours.logits, theirs.logits, atol=1e-5, rtol=1e-5)
    assert {name for name, values in model.named_parameters() if not values.requires_grad} == FROZEN


def test_a_retfound_folder_goes_on_as_it_was(model_folder):
    model, stored = autoencoder(model_folder), RetFoundForPreTraining.from_pretrained(model_folder)
    for (name, ours), theirs in zip(model.state_dict().items(), stored.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
    assert model.config.to_dict() == stored.config.to_dict()
    assert model.dtype == torch.float32 and model.training
    assert autoencoder(model_folder, image_size=32).config.image_size == 32


def test_arguments_set_modality_and_mask_ratio(tmp_path):
    config = tiny_config(modality="oct", mask_ratio=0.9, layer_norm_eps=1e-5, drop_path_rate=0.2)
    RetFoundForPreTraining(config).to(torch.bfloat16).save_pretrained(tmp_path)
    model = autoencoder(tmp_path)
    found = model.config
    assert (found.modality, found.mask_ratio, found.layer_norm_eps, found.drop_path_rate) == ("oct", 0.9, 1e-5, 0)
    assert model.dtype == torch.float32
    for options, expected in [
        ({"modality": "cfp"}, ("cfp", 0.75)), ({"modality": "oct"}, ("oct", 0.85)),
        ({"modality": "oct", "mask_ratio": 0.5}, ("oct", 0.5)),
    ]:  # fmt: skip
        found = autoencoder(tmp_path, **options).config
        assert (found.modality, found.mask_ratio) == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, (None, 0.75)), ({"modality": "oct"}, ("oct", 0.85)), ({"modality": "cfp", "mask_ratio": 0.6}, ("cfp", 0.6))],
)
def test_a_preset_starts_from_scratch(options, expected):
    torch.manual_seed(0)
    model = autoencoder(**TINY, **options)
    assert (model.config.modality, model.config.mask_ratio) == expected
    assert (model.config.image_size, model.config.hidden_size, model.config.num_hidden_layers) == (64, 192, 12)
    parameters = dict(model.named_parameters())
    assert {name for name, values in parameters.items() if not values.requires_grad} == FROZEN
    for name, width in (("vit.embeddings.position_embeddings", 192), ("decoder.decoder_pos_embed", 128)):
        assert torch.equal(parameters[name], sincos_positions(width, 4)) and parameters[name].std() > 0.4
    other = dict(autoencoder(**TINY).named_parameters())
    assert not torch.equal(other["decoder.decoder_pred.weight"], parameters["decoder.decoder_pred.weight"])


@pytest.mark.parametrize("stock_class", [ViTModel, ViTForImageClassification])
@torch.no_grad()
def test_a_stock_vit_such_as_dinos_on_imagenet_is_taken_over_whole(tmp_path, stock_class):
    torch.manual_seed(0)
    reference = stock_class(ViTConfig(**VIT)).eval()
    for parameter in reference.parameters():
        parameter.copy_(torch.randn_like(parameter) / 4)
    reference.save_pretrained(tmp_path)
    model = encoder(tmp_path, modality="oct")
    assert isinstance(model, RetFoundModel) and model.training and model.dtype == torch.float32
    assert model.config.modality == "oct" and model.config.drop_path_rate == 0
    fixed = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert fixed == ["embeddings.position_embeddings", "layernorm.weight", "layernorm.bias"]
    pixels = torch.randn(2, 3, 32, 32)
    expected = reference.base_model(pixels).last_hidden_state
    torch.testing.assert_close(model.eval()(pixels).last_hidden_state, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_masked_autoencoder_gives_its_encoder(stock):
    reference, folder = stock(mask_ratio=0.0)
    pixels, in_order = torch.randn(2, 3, 32, 32), torch.arange(16.0).expand(2, 16)
    expected = reference.vit(pixels, noise=in_order).last_hidden_state
    model = encoder(folder).eval()
    # The stock class has another epsilon in its norms.
    torch.testing.assert_close(model(pixels).last_hidden_state, expected, atol=1e-4, rtol=1e-4)


def test_weights_that_cannot_be_a_start_are_refused(model_folder, tmp_path):
    def folder(name, model=None):
        if model is None:
            shutil.copytree(model_folder, tmp_path / name)
        else:
            model.save_pretrained(tmp_path / name)
        return tmp_path / name

    part = folder("part")
    kept = {name: values for name, values in load_file(part / "model.safetensors").items() if "_pred" not in name}
    save_file(kept, part / "model.safetensors", metadata={"format": "pt"})
    adapter, cut = folder("adapter"), folder("cut")
    (adapter / "adapter_config.json").write_text("{}")
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:5000])
    torch.save({}, tmp_path / "swav.pth.tar")
    (tmp_path / "empty").mkdir()
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    without_decoder = [
        folder("encoder", RetFoundModel(tiny_config())), folder("vit", ViTModel(ViTConfig(**VIT))), part,
        folder("classifier", RetFoundForImageClassification(tiny_config())),
    ]  # fmt: skip
    of_no_use = [adapter, cut, tmp_path / "empty", folder("dinov2", Dinov2Model(Dinov2Config(**sizes)))]
    for build, folders in ((autoencoder, [*without_decoder, *of_no_use]), (encoder, of_no_use)):
        for wrong in folders:
            with pytest.raises(BadModelError) as error:
                build(wrong)
            assert error.value.model == str(wrong) and "\n" not in str(error.value)
        for wrong in (tmp_path / "absent", tmp_path / "swav.pth.tar"):
            with pytest.raises(RetFoundError):
                build(wrong)


def test_sizes_that_clash_are_refused(model_folder):
    for build, options, field in [
        (autoencoder, {"folder": model_folder, "config_name": "retfound-tiny"}, "config_name"),
        (autoencoder, {"folder": model_folder, "image_size": 64}, "image_size"),
        (autoencoder, {"config_name": "retfound-tiny", "image_size": 100}, "image_size"),
        (autoencoder, {"config_name": "resnet-50"}, "config_name"),
        (encoder, {"folder": model_folder, "image_size": 64}, "image_size"),
        (encoder, {"config_name": "retfound-tiny", "image_size": 100}, "image_size"),
    ]:
        with pytest.raises(BadArgumentError) as error:
            build(**options)
        assert error.value.field == field


def test_starting_points_by_name(stock, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RetFoundError):
        autoencoder("ssl-imagenet")
    model, folder = stock()
    folder.rename(tmp_path / "ssl-imagenet")
    assert torch.equal(autoencoder("ssl-imagenet").decoder.mask_token, model.decoder.mask_token)
