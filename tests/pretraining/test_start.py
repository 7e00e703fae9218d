"""What pretraining starts from: the same network as stock transformers has, or one line about why not."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import ViTConfig, ViTForImageClassification, ViTMAEForPreTraining

from retfound_hf import RetFoundForImageClassification, RetFoundForPreTraining, RetFoundModel
from retfound_hf.errors import RetFoundError
from retfound_hf.models.configuration_retfound import PRESETS
from retfound_hf.models.modeling_retfound import sincos_positions
from retfound_hf.pretraining.arguments import ModelArguments
from retfound_hf.pretraining.objectives.mae import build_autoencoder as build_model

FROZEN = {"vit.embeddings.position_embeddings", "decoder.decoder_pos_embed"}
TINY = {"config_name": "retfound-tiny", "image_size": 64}


@pytest.fixture
def stock(stock_config, tmp_path):
    """Makes a stock autoencoder whose parameters are all noise, and the folder that transformers 5 writes."""

    def make(**overrides):
        model = ViTMAEForPreTraining(stock_config(**overrides))
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        model.save_pretrained(tmp_path / "stock")
        return model.eval(), tmp_path / "stock"

    return make


def old_names(folder):
    """The same folder with the decoder's names of transformers 4.x, as facebook/vit-mae-large has them."""
    tensors = load_file(folder / "model.safetensors")
    renamed = {
        name.replace("decoder.decoder_encoder.layer.", "decoder.decoder_layers."): values
        for name, values in tensors.items()
    }
    assert len(set(renamed) - set(tensors)) == 16
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("names", ["5", "4"])
@pytest.mark.parametrize("preset", [None, "retfound-oct"])
def test_a_stock_folder_gives_the_stock_loss(stock, monkeypatch, names, preset):
    reference, folder = stock(mask_ratio=0.6, norm_pix_loss=False)
    if names == "4":
        old_names(folder)
    if preset:  # of these sizes, since a preset must fit the weights
        config = json.loads((folder / "config.json").read_text())
        sizes = {key: value for key, value in config.items() if "size" in key or "num_" in key}
        monkeypatch.setitem(PRESETS, preset, {**sizes, **PRESETS[preset]})
    args = ModelArguments(model_name_or_path=str(folder), config_name=preset)
    model = build_model(args)
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
    generator = torch.Generator().manual_seed(1)
    pixels, noise = torch.randn(3, 3, 32, 32, generator=generator), torch.rand(3, 16, generator=generator)
    with torch.no_grad():
        ours, theirs = model(pixels, noise=noise), reference(pixels, noise=noise)
    assert torch.equal(ours.mask, theirs.mask)
    assert ours.loss.item() == pytest.approx(theirs.loss.item(), abs=1e-5)
    torch.testing.assert_close(ours.logits, theirs.logits, atol=1e-5, rtol=1e-5)
    assert {name for name, values in model.named_parameters() if not values.requires_grad} == FROZEN


def test_a_retfound_folder_goes_on_as_it_was(model_folder):
    model = build_model(ModelArguments(model_name_or_path=str(model_folder)))
    stored = RetFoundForPreTraining.from_pretrained(model_folder)
    for (name, ours), theirs in zip(model.state_dict().items(), stored.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
    assert model.config.to_dict() == stored.config.to_dict()
    assert model.dtype == torch.float32 and model.training


def test_the_command_line_sets_modality_and_mask_ratio(tiny_config, tmp_path):
    folder = tmp_path / "oct"
    RetFoundForPreTraining(
        tiny_config(modality="oct", mask_ratio=0.9, layer_norm_eps=1e-5, drop_path_rate=0.2)
    ).to(torch.bfloat16).save_pretrained(folder)  # fmt: skip

    def config(**options):
        return build_model(ModelArguments(model_name_or_path=str(folder), **options)).config

    assert (config().modality, config().mask_ratio, config().layer_norm_eps) == ("oct", 0.9, 1e-5)
    assert config().drop_path_rate == 0
    assert (config(modality="cfp").modality, config(modality="cfp").mask_ratio) == ("cfp", 0.75)
    assert config(modality="oct").mask_ratio == 0.85
    assert config(modality="oct", mask_ratio=0.5).mask_ratio == 0.5
    assert build_model(ModelArguments(model_name_or_path=str(folder))).dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (None, 0.75)),
        ({"modality": "oct"}, ("oct", 0.85)),
        ({"modality": "cfp", "mask_ratio": 0.6}, ("cfp", 0.6)),
    ],
)
def test_a_preset_starts_from_scratch(options, expected):
    torch.manual_seed(0)
    model = build_model(ModelArguments(**TINY, **options))
    assert (model.config.modality, model.config.mask_ratio) == expected
    assert (model.config.image_size, model.config.hidden_size, model.config.num_hidden_layers) == (64, 192, 12)
    parameters = dict(model.named_parameters())
    assert {name for name, values in parameters.items() if not values.requires_grad} == FROZEN
    for name, width in (("vit.embeddings.position_embeddings", 192), ("decoder.decoder_pos_embed", 128)):
        assert torch.equal(parameters[name], sincos_positions(width, 4))
        assert parameters[name].std() > 0.4
    torch.manual_seed(1)
    other = dict(build_model(ModelArguments(**TINY)).named_parameters())
    assert not torch.equal(other["decoder.decoder_pred.weight"], parameters["decoder.decoder_pred.weight"])


@pytest.fixture
def refused():
    def check(match: str, **options) -> None:
        with pytest.raises(RetFoundError, match=match) as error:
            build_model(ModelArguments(**options))
        assert "\n" not in str(error.value)

    return check


def test_folders_without_a_decoder_are_refused(refused, tiny_config, model_folder, tmp_path):
    config = tiny_config()
    RetFoundModel(config).save_pretrained(tmp_path / "encoder")
    refused("holds an encoder without its decoder", model_name_or_path=str(tmp_path / "encoder"))
    RetFoundForImageClassification(config).save_pretrained(tmp_path / "classifier")
    refused("holds an encoder without its decoder", model_name_or_path=str(tmp_path / "classifier"))
    shutil.copytree(model_folder, tmp_path / "part")
    tensors = load_file(tmp_path / "part" / "model.safetensors")
    kept = {name: values for name, values in tensors.items() if "decoder_pred" not in name}
    save_file(kept, tmp_path / "part" / "model.safetensors", metadata={"format": "pt"})
    refused("lacks 2 tensors, such as decoder.decoder_pred.bias", model_name_or_path=str(tmp_path / "part"))


def test_other_folders_are_refused(refused, model_folder, tmp_path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    ViTForImageClassification(ViTConfig(**sizes, image_size=32)).save_pretrained(tmp_path / "vit")
    refused("is a vit model", model_name_or_path=str(tmp_path / "vit"))
    shutil.copytree(model_folder, tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    refused("is a LoRA adapter", model_name_or_path=str(tmp_path / "adapter"))
    (tmp_path / "empty").mkdir()
    refused("has no config.json", model_name_or_path=str(tmp_path / "empty"))
    refused("is neither a model folder here nor", model_name_or_path=str(tmp_path / "absent"))
    shutil.copytree(model_folder, tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    refused("cut cannot be loaded: .", model_name_or_path=str(tmp_path / "cut"))
    weights.unlink()
    refused("cut cannot be loaded: .", model_name_or_path=str(tmp_path / "cut"))


def test_sizes_that_clash_are_refused(refused, model_folder):
    folder = str(model_folder)
    refused(
        "retfound-tiny has hidden_size 192, and .* has 32; leave --config_name out",
        config_name="retfound-tiny", model_name_or_path=folder,
    )  # fmt: skip
    refused("--image_size 64 differs from the 32 of", image_size=64, model_name_or_path=folder)
    assert build_model(ModelArguments(image_size=32, model_name_or_path=folder)).config.image_size == 32
    refused("image_size=100` is not a multiple of `patch_size=16", config_name="retfound-tiny", image_size=100)


def test_starting_points_by_name(stock, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(RetFoundError, match=r"`hf download facebook/vit-mae-large --local-dir ssl-imagenet`"):
        build_model(ModelArguments(model_name_or_path="ssl-imagenet"))
    model, folder = stock()
    folder.rename(tmp_path / "ssl-imagenet")
    own = build_model(ModelArguments(model_name_or_path="ssl-imagenet"))
    assert torch.equal(own.decoder.mask_token, model.decoder.mask_token)
