import pytest
import torch
from torchvision.ops import StochasticDepth

from retfound_hf import RetFoundForImageClassification, RetFoundForPreTraining, RetFoundModel


def rates(model) -> list[float]:
    layers = [layer.drop_path for layer in model.vit.encoder.layer]
    return [layer.p if isinstance(layer, StochasticDepth) else 0.0 for layer in layers]


def test_rate_grows_linearly_over_the_blocks(small_config):
    model = RetFoundForImageClassification(small_config(num_hidden_layers=5, drop_path_rate=0.2))
    assert rates(model) == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])
    published = torch.linspace(0, 0.2, 24).tolist()  # as the official code draws its rates
    with torch.device("meta"):
        large = RetFoundForImageClassification(small_config(num_hidden_layers=24, drop_path_rate=0.2))
    assert rates(large) == pytest.approx(published)


def test_decoder_drops_nothing(small_config):
    model = RetFoundForPreTraining(small_config(drop_path_rate=0.5))
    assert not any(isinstance(module, StochasticDepth) for module in model.decoder.modules())


def test_off_in_evaluation(small_config, randomise, images):
    model = randomise(RetFoundModel(small_config(drop_path_rate=0.9)))
    plain = RetFoundModel(small_config()).eval()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model(images()).last_hidden_state, plain(images()).last_hidden_state)
    assert not torch.equal(model.train()(images()).last_hidden_state, plain(images()).last_hidden_state)


def test_whole_branches_of_single_images_are_dropped(small_config, randomise):
    """With the MLP silenced, an image comes out as it went in (dropped) or plus branch / (1 - p) (kept)."""
    layer = randomise(RetFoundModel(small_config(num_hidden_layers=2, drop_path_rate=0.4))).encoder.layer[1]
    torch.nn.init.zeros_(layer.output.dense.weight)
    torch.nn.init.zeros_(layer.output.dense.bias)
    tokens = torch.randn(1, 5, 64, generator=torch.Generator().manual_seed(0)).expand(400, -1, -1)
    branch = layer(tokens)[0] - tokens
    torch.manual_seed(0)
    change = layer.train()(tokens)[0] - tokens
    dropped = change.abs().amax(dim=(1, 2)) == 0
    assert dropped.float().mean().item() == pytest.approx(0.4, abs=0.08)  # 3 standard errors
    torch.testing.assert_close(change[~dropped], branch[~dropped] / 0.6, atol=1e-5, rtol=1e-4)


def test_expectation_is_kept_in_training(small_config, randomise):
    """The branch is the attention alone, since the MLP sees a changed input and is not linear in it."""
    layer = randomise(RetFoundModel(small_config(num_hidden_layers=2, drop_path_rate=0.3))).encoder.layer[1]
    torch.nn.init.zeros_(layer.output.dense.weight)
    tokens = torch.randn(1, 5, 64, generator=torch.Generator().manual_seed(0)).expand(4000, -1, -1)
    expected = layer(tokens[:1])[0][0]
    torch.manual_seed(0)
    mean = layer.train()(tokens)[0].mean(dim=0)
    branch = (expected - tokens[0]).abs().max()
    assert (mean - expected).abs().max() < 0.06 * branch


def test_autoencoder_without_drop_path_is_the_same_in_training_and_evaluation(small_config, randomise, images):
    model = randomise(RetFoundForPreTraining(small_config()))
    noise = torch.rand(2, 16)
    assert torch.equal(model.train()(images(), noise=noise).logits, model.eval()(images(), noise=noise).logits)
