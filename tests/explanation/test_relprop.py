"""Relevance propagation: rules by hand and against captum, whole models against the equations written out in full."""

import pytest
import torch
from captum.attr import LRP
from captum.attr._utils.lrp_rules import Alpha1_Beta0_Rule
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from retfound_hf.errors import BadModelError
from retfound_hf.explanation.attention import attention_pass, view_of
from retfound_hf.explanation.relevance import (
    relevance,
    through_block,
    through_head,
    through_linear,
    through_mean,
    through_product,
    through_sum,
)  # fmt: skip


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
        asked = {"output_attentions": True, "output_hidden_states": True, "interpolate_pos_encoding": True}
        outputs = model(pixels[None].double().requires_grad_(), **asked)
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
    with pytest.raises(BadModelError):
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


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_linear_by_hand():
    """The inputs 2, -1, 3 give outputs 2 - 3 + 9 and -2 + 4 + 0: what is negative takes nothing."""
    inputs, weight = torch.tensor([2.0, -1.0, 3.0]), torch.tensor([[1.0, 3.0, 3.0], [-1.0, -4.0, 0.0]])
    found = through_linear(inputs, weight, torch.tensor([11.0, 5.0]))
    assert found.tolist() == pytest.approx([2, 5, 9])


def test_mean_by_hand():
    """Channels of mean 2 and -1: to the tokens of that sign, in shares of their size."""
    tokens = torch.tensor([[[6.0, 1.0], [2.0, -1.0], [-2.0, -3.0]]])
    found = through_mean(tokens, torch.tensor([[4.0, 8.0]]))
    assert found.flatten().tolist() == pytest.approx([3, 0, 1, 2, 0, 6])


def test_sum_by_hand():
    """Of 4 = 3 + 1 and 1 = -1 + 2, each with its sum as relevance: the shares add up already, and stay."""
    first, second = torch.tensor([[3.0, -1.0]]), torch.tensor([[1.0, 2.0]])
    one, other = through_sum(first, second, torch.tensor([[4.0, 1.0]]))
    assert one.flatten().tolist() == pytest.approx([3, -1]) and other.flatten().tolist() == pytest.approx([1, 2])


def test_summands_of_opposite_sign_are_scaled_to_the_total():
    """By shares 11 and -10 of a relevance of 1; by magnitudes 11/21 and 10/21 of it."""
    one, other = through_sum(torch.tensor([[11.0]]), torch.tensor([[-10.0]]), torch.tensor([[1.0]]))
    assert (one.item(), other.item()) == pytest.approx((11 / 21, 10 / 21))


def test_product_by_hand():
    """(1, 3) @ (2, 2) = 8 = 2 + 6: each factor gets half of the relevance of 8, in those shares."""
    left, right = torch.tensor([[[1.0, 3.0]]]), torch.tensor([[[2.0], [2.0]]])
    one, other = through_product(left, right, torch.tensor([[[8.0]]]))
    assert one.flatten().tolist() == pytest.approx([1, 3]) and other.flatten().tolist() == pytest.approx([1, 3])


def test_every_rule_keeps_the_sum_of_each_image():
    relevance = drawn(3, 5, 8, seed=1)
    total = relevance.sum(dim=(1, 2))

    def check(*parts: torch.Tensor) -> None:
        torch.testing.assert_close(sum(p.sum(dim=(1, 2)) for p in parts), total, rtol=1e-3, atol=1e-4)

    check(through_linear(drawn(3, 5, 16, seed=2), drawn(8, 16, seed=3), relevance))
    check(*through_sum(drawn(3, 5, 8, seed=4), drawn(3, 5, 8, seed=5), relevance))
    check(*through_product(drawn(3, 5, 6, seed=6), drawn(3, 6, 8, seed=7), relevance))
    pooled = through_mean(drawn(3, 5, 8, seed=8), relevance.sum(dim=1))
    torch.testing.assert_close(pooled.sum(dim=1), relevance.sum(dim=1), rtol=1e-4, atol=1e-5)


def test_what_is_zero_hands_nothing_on():
    zeros = torch.zeros(1, 2, 2)
    for found in (
        through_linear(zeros, drawn(2, 2), torch.ones(1, 2, 2)),
        *through_sum(zeros, zeros, torch.ones(1, 2, 2)),
        *through_product(zeros, drawn(1, 2, 2), torch.ones(1, 2, 2)),
        through_mean(zeros, torch.ones(1, 2)),
    ):
        assert torch.equal(found, torch.zeros(1, 2, 2))


def test_linear_layers_equal_those_of_captum():
    """A net of linear layers and ReLU on positive inputs, without biases, to which captum gives relevance too."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 20, bias=False), nn.ReLU(), nn.Linear(20, 3, bias=False))
    inputs = drawn(4, 12).abs()
    with torch.no_grad():
        hidden = net[:2](inputs)
        start = torch.zeros(4, 3).index_fill(1, torch.tensor([1]), 1.0) * net(inputs)
        ours = through_linear(inputs, net[0].weight, through_linear(hidden, net[2].weight, start))
    for layer in (net[0], net[2]):
        layer.rule = Alpha1_Beta0_Rule(set_bias_to_zero=True)
    torch.testing.assert_close(LRP(net).attribute(inputs, target=1), ours, rtol=1e-4, atol=1e-6)
