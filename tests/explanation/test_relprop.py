"""Relevance propagation over whole models, against its equations written out in full."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from retfound_hf.errors import RetFoundError
from retfound_hf.explanation.attention import attention_pass, view_of
from retfound_hf.explanation.relevance import relevance
from retfound_hf.explanation.relprop import through_block, through_head


def linear(x: Tensor, weight: Tensor, relevance: Tensor) -> Tensor:
    """Equation 7: shares of the positive products, all of which are formed; x (tokens, in), weight (out, in)."""
    products = torch.relu(x[:, None] * weight)
    return (products / products.sum(dim=-1, keepdim=True) * relevance[..., None]).sum(dim=1)


def both(u: Tensor, v: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """Equation 10."""
    share = u.sum().abs() / (u.sum().abs() + v.sum().abs())
    return u / u.sum() * share * total, v / v.sum() * (1 - share) * total


def add(u: Tensor, v: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
    return both(u * relevance / (u + v), v * relevance / (u + v), relevance.sum())


def multiply(a: Tensor, b: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
    """a (heads, i, j), b (heads, j, d); every product of the sum over j is formed."""
    parts = a[..., None] * b[:, None]
    parts = parts / parts.sum(dim=2, keepdim=True) * relevance[:, :, None]
    return both(parts.sum(dim=3), parts.sum(dim=1), relevance.sum())


@torch.no_grad()
def plain_relprop(model, pixels: Tensor, target: int) -> Tensor:
    """The map of one image in float64, with whole matrices; and the sums of relevance before every block."""
    model = model.double().eval()
    with torch.enable_grad():
        outputs = model(pixels[None].double().requires_grad_(), output_attentions=True, output_hidden_states=True)
        gradients = torch.autograd.grad(outputs.logits[0, target], outputs.attentions)
    states = [state[0] for state in outputs.hidden_states]
    mean = states[-1][1:].mean(dim=0)
    features = model.fc_norm(mean)
    features = model.fc_norm(features) if model.config.head_norm == "double" else features
    positive = torch.relu(features * model.classifier.weight[target])
    agreeing = torch.relu(states[-1][1:] * mean.sign())
    found = torch.zeros_like(states[-1])
    found[1:] = agreeing / agreeing.sum(dim=0) * (positive / positive.sum())

    tokens = len(found)
    rows, joint = [], torch.eye(tokens, dtype=torch.float64)
    blocks = list(zip(model.vit.encoder.layer, states, outputs.attentions, gradients, strict=False))
    for layer, x, attention, gradient in reversed(blocks):
        own, heads = layer.attention.attention, lambda t: t.view(tokens, 4, -1).transpose(0, 1)
        normed, attention = layer.layernorm_before(x), attention[0]
        query, key, value = (heads(part(normed)) for part in (own.query, own.key, own.value))
        context = (attention @ value).transpose(0, 1).reshape(tokens, -1)
        middle = x + layer.attention.output(context)
        normed_middle = layer.layernorm_after(middle)
        hidden = layer.activation(layer.intermediate(normed_middle))

        skip, branch = add(middle, layer.output(hidden), found)
        branch = linear(hidden, layer.output.dense.weight, branch)
        found = skip + linear(normed_middle, layer.intermediate.dense.weight, branch)
        skip, branch = add(x, layer.attention.output(context), found)
        branch = heads(linear(context, layer.attention.output.dense.weight, branch))
        of_attention, of_value = multiply(attention, value, branch)
        of_query, of_key = multiply(query, key.mT, of_attention)
        rows.append(torch.relu(gradient[0] * of_attention).mean(dim=0))
        found = skip
        for part, layer_of in ((of_query, own.query), (of_key.mT, own.key), (of_value, own.value)):
            found = found + linear(normed, layer_of.weight, part.transpose(0, 1).reshape(tokens, -1))
    for matrix in reversed(rows):
        joint = (torch.eye(tokens, dtype=torch.float64) + matrix) @ joint
    return (joint - torch.eye(tokens))[1:].mean(dim=0)[1:]


@pytest.mark.parametrize("head_norm", ["single", "double"])
@pytest.mark.parametrize("size", [32, 48])
def test_the_map_equals_the_equations_written_out(classifier, images, head_norm, size):
    pixels = images(2, size)
    found = relevance(classifier(head_norm=head_norm), pixels, target=[2, 0], method="relprop").patches
    assert found.shape == (2, size // 8, size // 8) and found.min() >= 0
    for index, target in enumerate([2, 0]):
        plain = plain_relprop(classifier(head_norm=head_norm), pixels[index], target)
        assert plain.max() > 0
        torch.testing.assert_close(found[index].flatten().double(), plain, rtol=1e-2, atol=1e-3 * plain.max().item())


def test_relevance_is_kept_through_head_and_blocks(classifier, images):
    """It starts as 1 for each image and is 1 before every block; half of what reaches a product stays with each."""
    view = view_of(classifier())
    found = attention_pass(view, images(3).requires_grad_(), [0, 1, 2])
    *inputs, last = (state.detach() for state in found.score.outputs.hidden_states)
    with torch.no_grad():
        relevance = through_head(view, last, found.score.targets)
        assert relevance[:, 0].abs().max() == 0  # the head does not read the class token
        for layer, tokens, weights in reversed(list(zip(view.vit.encoder.layer, inputs, found.weights, strict=True))):
            torch.testing.assert_close(relevance.sum(dim=(1, 2)), torch.ones(3), rtol=1e-3, atol=0)
            relevance, of_weights = through_block(layer, tokens, weights, relevance)
            assert of_weights.shape == weights.shape
            assert ((of_weights.sum(dim=(1, 2, 3)) > 0) & (of_weights.sum(dim=(1, 2, 3)) < 0.5)).all()
    torch.testing.assert_close(relevance.sum(dim=(1, 2)), torch.ones(3), rtol=1e-3, atol=0)


def test_nothing_in_favour_of_a_class_gives_an_empty_map(classifier, images):
    model = classifier()
    with torch.no_grad():
        model.fc_norm.weight.zero_()
        model.fc_norm.bias.fill_(1.0)
        model.classifier.weight.copy_(torch.tensor([[1.0], [-1.0], [0.0]]).expand(3, 32))
    assert relevance(model, images(), "none", "relprop").patches.abs().max() == 0


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_other_architectures_are_refused(stock, images, kind):
    with pytest.raises(RetFoundError, match="use the method"):
        relevance(stock(kind), images(), method="relprop")


def test_an_adapter_on_every_layer(classifier, images):
    """Adapters that are not merged count, biases of the base and the head of the adapter too."""
    everywhere = ["query", "key", "value", "dense"]
    for options in ({}, {"use_dora": True}):
        lora = LoraConfig(
            r=2, target_modules=everywhere, modules_to_save=["fc_norm", "classifier"], init_lora_weights=False,
            **options,
        )  # fmt: skip
        model = get_peft_model(classifier(), lora).eval()
        adapted = relevance(model, images(), 1, "relprop").patches
        merged = relevance(model.merge_and_unload(), images(), 1, "relprop").patches
        torch.testing.assert_close(adapted, merged, rtol=1e-2, atol=1e-3 * merged.max().item())


def test_autocast_reaches_the_forward_pass_alone(classifier, images):
    exact = relevance(classifier(), images(), 1, "relprop").patches.flatten()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = relevance(classifier(), images(), 1, "relprop").patches.flatten()
    assert rounded.dtype == torch.float32
    assert torch.corrcoef(torch.stack([exact, rounded]))[0, 1] > 0.8
