import pytest
import torch

from retfound_hf import RetFoundForImageClassification, RetFoundForPreTraining, RetFoundModel


def test_sdpa_is_the_default(small_config, tmp_path):
    model = RetFoundModel(small_config())
    assert model.config._attn_implementation == "sdpa"
    model.save_pretrained(tmp_path)
    assert RetFoundForImageClassification.from_pretrained(tmp_path).config._attn_implementation == "sdpa"


def test_sdpa_is_what_runs(small_config, images, monkeypatch):
    calls = []
    original = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda *args, **kwargs: calls.append(1) or original(*args, **kwargs),
    )
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


def test_flash_and_flex_attention_go_through_the_interface():
    assert RetFoundModel._supports_flash_attn and RetFoundModel._supports_flex_attn
    assert RetFoundModel._supports_attention_backend
