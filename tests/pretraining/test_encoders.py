"""What objectives without a decoder start from: the same network as stock transformers has, or one line why not."""

import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification, ViTMAEForPreTraining, ViTModel

from retfound_hf import RetFoundModel
from retfound_hf.errors import RetFoundError
from retfound_hf.pretraining.arguments import ModelArguments
from retfound_hf.pretraining.objectives.base import build_encoder

VIT = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip


def start(**options) -> RetFoundModel:
    return build_encoder(ModelArguments(**{"objective": "dino", **options}))


@pytest.mark.parametrize("stock_class", [ViTModel, ViTForImageClassification])
@torch.no_grad()
def test_a_stock_vit_such_as_dinos_on_imagenet_is_taken_over_whole(tmp_path, stock_class):
    torch.manual_seed(0)
    stock = stock_class(ViTConfig(**VIT)).eval()
    for parameter in stock.parameters():
        parameter.copy_(torch.randn_like(parameter) / 4)
    stock.save_pretrained(tmp_path / "vit")
    model = start(model_name_or_path=str(tmp_path / "vit"), modality="oct")
    assert isinstance(model, RetFoundModel) and model.training and model.dtype == torch.float32
    assert model.config.modality == "oct" and model.config.drop_path_rate == 0
    pixels = torch.randn(2, 3, 32, 32)
    fixed = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert fixed == ["embeddings.position_embeddings"]
    expected = stock.base_model(pixels).last_hidden_state
    torch.testing.assert_close(model.eval()(pixels).last_hidden_state, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_masked_autoencoder_gives_its_encoder(stock_config, tmp_path):
    torch.manual_seed(0)
    stock = ViTMAEForPreTraining(stock_config(mask_ratio=0.0)).eval()
    stock.save_pretrained(tmp_path / "mae")
    model = start(model_name_or_path=str(tmp_path / "mae")).eval()
    pixels, in_order = torch.randn(2, 3, 32, 32), torch.arange(16.0).expand(2, 16)
    expected = stock.vit(pixels, noise=in_order).last_hidden_state
    torch.testing.assert_close(model(pixels).last_hidden_state, expected, atol=1e-5, rtol=1e-5)


def test_a_preset_starts_from_random_weights_with_positions():
    model = start(config_name="retfound-tiny", image_size=96, modality="cfp")
    assert (model.config.image_size, model.config.modality) == (96, "cfp")
    assert model.training and model.embeddings.position_embeddings.abs().sum() > 0


def test_what_cannot_be_a_start_is_said_in_one_line(stock_config, tmp_path):
    from transformers import Dinov2Config, Dinov2Model

    Dinov2Model(Dinov2Config(hidden_size=32, num_hidden_layers=1, num_attention_heads=4)).save_pretrained(
        tmp_path / "dinov2"
    )
    torch.save({}, tmp_path / "swav.pth.tar")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    for options, reason in [
        (
            {"model_name_or_path": str(tmp_path / "dinov2")},
            "is a dinov2 model; `objective=dino` goes on",
        ),
        ({"model_name_or_path": str(tmp_path / "adapter")}, "is a LoRA adapter"),
        ({"model_name_or_path": str(tmp_path)}, "has no config.json"),
        ({"model_name_or_path": str(tmp_path / "swav.pth.tar")}, "is a checkpoint file, .*scripts/convert_checkpoint"),
        ({"config_name": "retfound-tiny", "image_size": 100}, "image_size=100"),
    ]:
        with pytest.raises(RetFoundError, match=reason) as error:
            start(**options)
        assert "\n" not in str(error.value)
