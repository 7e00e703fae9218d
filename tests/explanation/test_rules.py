"""Rules of relevance propagation: by hand, conserved, and equal to captum's where captum has them."""

import pytest
import torch
from captum.attr import LRP
from captum.attr._utils.lrp_rules import Alpha1_Beta0_Rule
from torch import nn

from retfound_hf.explanation.relprop import through_linear, through_mean, through_product, through_sum


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
