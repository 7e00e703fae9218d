"""Views, heads, collapse diagnostics and batch norms that the objectives share."""

import pickle

import pytest
import torch
from lightly.models.modules import heads
from torch import nn
from torchvision.transforms.v2 import InterpolationMode, functional

from retfound_hf.pretraining.data import step_generator
from retfound_hf.pretraining.objectives import distributed
from retfound_hf.pretraining.objectives.distributed import DistributedBatchNorm, convert_sync_batchnorm
from retfound_hf.pretraining.objectives.joint_embedding import (
    View,
    ViewsDraw,
    entropy,
    local_size,
    select_view,
    spread,
)

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
PUBLISHED = View(32, 32, (0.08, 1.0), (0.8, 0.8, 0.8, 0.2), sigmas=(0.7, 14.0), solarize=0.3)


def test_a_view_equals_torchvision_step_by_step(images):
    drawn = PUBLISHED.draw(16, 64, step_generator(0, 0))
    found = PUBLISHED.make(images, drawn)
    operations = (functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation)
    assert drawn["gray"].any() and drawn["solarize"].any() and (drawn["sigmas"] > 0).any()
    for index, image in enumerate(images):
        row = {name: values[index] for name, values in drawn.items()}
        view = functional.resized_crop(image, *row["crops"].tolist(), [32, 32], InterpolationMode.BICUBIC) / 255
        view = functional.horizontal_flip(view) if row["flips"] else view
        for operation in row["order"].tolist():
            view = operations[operation](view, row["factors"][operation].item())
        view = functional.adjust_hue(view, row["turns"].item())
        view = functional.rgb_to_grayscale(view, 3) if row["gray"] else view
        view = functional.gaussian_blur(view, 3, row["sigmas"].item()) if row["sigmas"] else view
        view = functional.solarize(view, 128 / 255) if row["solarize"] else view
        # At the threshold of solarisation the rounding of torchvision's crop may fall to either side.
        assert ((found[index] - 255 * view).abs() < 4).float().mean() > 0.98
        assert (found[index] - 255 * view).abs().mean() < 1.5


def test_rows_of_a_whole_batch_are_those_of_its_parts(images):
    draw = ViewsDraw(64, (PUBLISHED, PUBLISHED))
    drawn = draw(16, step_generator(0, 0))
    assert all(len(values) == 16 for values in drawn.values())
    whole = PUBLISHED.make(images, select_view(drawn, 1))
    part = PUBLISHED.make(images[4:9], {name: values[4:9] for name, values in select_view(drawn, 1).items()})
    torch.testing.assert_close(whole[4:9], part, atol=1e-4, rtol=0)
    assert not torch.equal(drawn["0.crops"], drawn["1.crops"])
    assert len(pickle.dumps(draw)) < 2000  # it goes to the loader's workers


def test_what_never_happens_is_not_drawn():
    drawn = View(32, 32, (0.2, 1.0), (0.4, 0.4, 0.2, 0.1), gray=0, blur=0).draw(4, 64, step_generator(0, 0))
    assert drawn.keys() == {"crops", "flips", "factors", "turns", "order"}


def test_blur_is_as_wide_in_the_image_whatever_the_size_of_the_network():
    sigmas = [
        View(96, whole, (0.2, 1.0), (0, 0, 0, 0), blur=1.0).draw(1000, 64, step_generator(0, 0))["sigmas"]
        for whole in (224, 112)
    ]
    assert 0.1 <= sigmas[0].min() < 0.12 and 1.98 < sigmas[0].max() <= 2.0
    torch.testing.assert_close(sigmas[1], sigmas[0] / 2)


def test_retina_keeps_colour_polarity_and_small_lesions():
    retina = PUBLISHED.for_retina()
    assert (retina.gray, retina.solarize) == (0, 0)
    assert retina.scale == (0.2, 1.0)
    assert retina.strengths == (0.4, 0.4, 0.2, 0.02)
    assert retina.sigmas == (0.1, 1.0) and retina.blur == 0.5
    small = View(16, 32, (0.05, 0.4), (0.4, 0.4, 0.2, 0.1)).for_retina()
    assert small.scale == (0.05, 0.4)


@pytest.mark.parametrize(("size", "patch", "expected"), [(224, 16, 96), (224, 14, 98), (112, 16, 48), (32, 8, 16)])
def test_small_crops_have_whole_patches(size, patch, expected):
    assert local_size(size, patch) == expected


def test_the_network_sees_normalised_views_one_kind_after_the_other(make_objective, joint, images):
    objective = make_objective(joint)
    draws = objective.draw(16, step_generator(0, 3))
    found = objective.views(images, draws)
    first, second, *small = (
        functional.normalize(view.make(images, select_view(draws, number)) / 255, MEAN, STD)
        for number, view in enumerate(objective.draw.views)
    )
    torch.testing.assert_close(found["large"], torch.cat([first, second]), atol=1e-5, rtol=1e-5)
    assert ("small" in found) == bool(small)
    if small:
        torch.testing.assert_close(found["small"], torch.cat(small), atol=1e-5, rtol=1e-5)
    assert (first - second).abs().mean() > 0.1


def test_the_published_views_are_there_when_asked_for(make_objective, joint):
    published = make_objective(joint, views="published").draw.views
    assert make_objective(joint).draw.views == tuple(view.for_retina() for view in published)
    assert published[0].gray == 0.2 and published[0].strengths[3] >= 0.1


def test_previews_show_the_image_and_two_views(make_objective, joint, images):
    objective = make_objective(joint)
    rows = objective.preview(images[:3], objective.draw(3, step_generator(0, 3)))
    assert [len(row) for row in rows] == [3] * 3 == [len(objective.preview_titles)] * 3
    for image, (original, first, second) in zip(images, rows, strict=False):
        whole = functional.resize(image, [32, 32], InterpolationMode.BICUBIC) / 255
        assert (original - whole).abs().max() < 2 / 255
        assert first.min() >= 0 and first.max() <= 1
        assert first.shape == second.shape == (3, 32, 32) and not torch.equal(first, second)


def test_spread_of_known_directions():
    assert spread(torch.ones(8, 4)).item() == pytest.approx(0, abs=1e-6)
    assert spread(torch.randn(4000, 64, generator=torch.Generator().manual_seed(0))).item() == pytest.approx(
        1, abs=0.01
    )
    # Length does not count: two opposite directions on one of four axes.
    opposite = torch.tensor([[3.0, 0, 0, 0], [-0.5, 0, 0, 0]])
    assert spread(opposite).item() == pytest.approx(1 / 4 * 2)


def test_entropy_of_known_shares():
    shares = torch.tensor([[0.25] * 4, [1.0, 0, 0, 0], [0.5, 0.5, 0, 0]])
    assert entropy(shares).tolist() == pytest.approx([1, 0, 0.5])


def moco(width: int, num_layers: int) -> nn.Module:
    """Of which the released code leaves out the weights of the last norm."""
    head = heads.MoCoProjectionHead(width, 32, 256, num_layers, batch_norm=True)
    head.layers[-1] = nn.BatchNorm1d(256, affine=False)
    return head


HEADS = [
    ("simclr", "projector", lambda width: heads.SimCLRProjectionHead(width, width, 128)),
    ("swav", "projector", lambda width: heads.SwaVProjectionHead(width, 32, 128)),
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
    for part, values in ((ours, found), (theirs, expected)):
        part(values).square().mean().backward()
    torch.testing.assert_close(found.grad, expected.grad, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(ours(found), theirs(expected), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(ours.eval()(found), theirs.eval()(expected), atol=1e-6, rtol=1e-5)


@pytest.fixture
def network():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm1d(4, affine=False)))
    network[1].running_mean.fill_(2.0)
    network[1].weight.requires_grad_(False)
    return network


@pytest.mark.parametrize(("device", "of_images"), [("cpu", DistributedBatchNorm), ("cuda", nn.SyncBatchNorm)])
def test_norms_of_heads_never_make_the_host_wait(network, device, of_images, monkeypatch):
    monkeypatch.setattr(distributed, "num_processes", lambda: 2)
    names = list(network.state_dict())
    found = convert_sync_batchnorm(network, torch.device(device))
    assert type(found[1]) is of_images and type(found[2][0]) is DistributedBatchNorm
    assert list(found.state_dict()) == names
    assert found[1].running_mean.unique().tolist() == [2.0] and not found[1].weight.requires_grad


def test_one_process_keeps_its_layers(network):
    assert type(convert_sync_batchnorm(network, torch.device("cpu"))[1]) is nn.BatchNorm2d
