"""The heads that objectives build equal lightly's with the same weights (DINO's: see its own tests)."""

import pytest
import torch
from lightly.models.modules.heads import (
    MoCoProjectionHead,
    ProjectionHead,
    SimCLRProjectionHead,
    SwaVProjectionHead,
)
from torch import nn


def moco(width: int, num_layers: int) -> ProjectionHead:
    """Of which the released code leaves out the weights of the last norm."""
    head = MoCoProjectionHead(width, 32, 256, num_layers, batch_norm=True)
    head.layers[-1] = nn.BatchNorm1d(256, affine=False)
    return head


HEADS = [
    ("simclr", "projector", lambda width: SimCLRProjectionHead(width, width, 128)),
    ("swav", "projector", lambda width: SwaVProjectionHead(width, 32, 128)),
    ("moco_v3", "projector", lambda width: moco(width, 3)),
    ("moco_v3", "predictor", lambda width: moco(256, 2)),
]


@pytest.mark.parametrize(("name", "part", "make"), HEADS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_head_equals_lightlys(make_objective, name, part, make):
    objective = make_objective(name)
    theirs, ours = make(objective.width), getattr(objective, part)
    with torch.no_grad():
        for parameter in theirs.parameters():  # norms and biases too: zeros and ones would hide one that is missing
            parameter.copy_(torch.randn(parameter.shape) / 4)
    ours.load_state_dict(theirs.layers.state_dict())
    found = torch.randn(12, theirs.layers[0].in_features).requires_grad_()
    expected = found.detach().clone().requires_grad_()
    for head, values in ((ours, found), (theirs, expected)):
        head(values).square().mean().backward()
    torch.testing.assert_close(found.grad, expected.grad, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(ours(found), theirs(expected), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(ours.eval()(found), theirs.eval()(expected), atol=1e-6, rtol=1e-5)
