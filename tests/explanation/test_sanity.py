"""Maps are true to their model: planted lesions are found, random weights destroy the map, order matters."""

import copy

import pytest
import torch
from faithfulness import Curves, deletion_and_insertion, mass_over_chance
from torch import Tensor, nn

from retfound_hf.errors import RetFoundError
from retfound_hf.explanation.relevance import METHODS, relevance

# Times as much of the map within the lesions as chance puts there.
MULTIPLE = {"relevance": 5.0, "relprop": 5.0, "rollout": 3.0, "integrated_gradients": 8.0}


@pytest.fixture(scope="module")
def maps(planted) -> dict[str, Tensor]:
    return {method: relevance(planted.model, planted.diseased, 1, method, steps=16).patches for method in METHODS}


def auroc(planted) -> float:
    with torch.no_grad():
        diseased, healthy = (planted.model(x).logits.softmax(1)[:, 1] for x in (planted.diseased, planted.healthy))
    return float((diseased[:, None] > healthy).float().mean())


def test_the_classifier_has_learned_its_lesions(planted):
    assert auroc(planted) > 0.95


@pytest.mark.parametrize("method", METHODS)
def test_the_map_lies_in_the_lesions(planted, maps, method):
    found = mass_over_chance(maps[method], planted.lesions)
    assert found.mean() > MULTIPLE[method]
    # Laid onto other images' lesions, the same maps are no better than chance and their common habit of place.
    assert mass_over_chance(maps[method], planted.lesions.roll(1, 0)).mean() < 0.5 * found.mean()


def test_without_a_lesion_the_map_lies_elsewhere(planted, maps):
    without = relevance(planted.model, planted.healthy, 1).patches
    assert mass_over_chance(without, planted.lesions).mean() < 0.4 * MULTIPLE["relevance"]


def with_random_weights(model: nn.Module) -> nn.Module:
    """The weights drawn anew from their own distribution, tensor by tensor (Adebayo et al. 2018)."""
    random = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in random.named_parameters():
            if "position" not in name and parameter.std() > 0:
                drawn = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(parameter.mean() + parameter.std() * drawn)
    return random


@pytest.mark.parametrize("method", METHODS)
def test_random_weights_destroy_the_map(planted, maps, method):
    other = relevance(with_random_weights(planted.model), planted.diseased, 1, method, steps=16).patches
    ranks = [values.flatten(1).argsort(1).argsort(1).float() for values in (maps[method], other)]
    correlation = torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(*ranks, strict=True)])
    assert correlation.mean() < 0.3
    assert mass_over_chance(other, planted.lesions).mean() < 0.5 * MULTIPLE[method]


def areas(planted, maps: Tensor, steps: int = 8) -> tuple[Curves, Curves]:
    """The curves of maps, and of as many maps in random order."""
    shuffled = torch.rand(maps.shape, generator=torch.Generator().manual_seed(0))
    return tuple(
        deletion_and_insertion(planted.model, planted.diseased, patches, 1, empty=planted.healthy, steps=steps)
        for patches in (maps, shuffled)
    )


@pytest.mark.parametrize("method", METHODS)
def test_deletion_and_insertion_beat_random_order(planted, maps, method):
    ours, random = areas(planted, maps[method])
    assert ours.deletion_area < random.deletion_area - 0.15
    assert ours.insertion_area > random.insertion_area + 0.15


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_same_over_classifiers_and_more_images(plant_anew, seed):
    planted = plant_anew(seed, images=96, steps=500)
    assert auroc(planted) > 0.95  # a map can be no better than its model
    random = with_random_weights(planted.model)
    for method in METHODS:
        maps, without = (
            relevance(model, planted.diseased, 1, method, steps=16).patches for model in (planted.model, random)
        )
        # Classifiers differ in how far they spread what they found over neighbouring patches.
        assert mass_over_chance(maps, planted.lesions).mean() > 0.5 * MULTIPLE[method], method
        assert 0.5 < mass_over_chance(without, planted.lesions).nanmean() < 2, method
        ours, shuffled = areas(planted, maps, steps=16)
        # The order of integrated gradients hardly beats chance in one classifier of three.
        margin = 0 if method == "integrated_gradients" else 0.15
        assert ours.deletion_area < shuffled.deletion_area - margin, method
        assert ours.insertion_area > shuffled.insertion_area + margin, method


@pytest.mark.parametrize("method", [method for method in METHODS if method != "integrated_gradients"])
def test_attention_shows_the_lesion_for_the_healthy_class_too(planted, method):
    """Attention has no sign: that nothing in a lesion speaks for a healthy eye, only integrated gradients say."""
    healthy = relevance(planted.model, planted.diseased, 0, method).patches
    assert mass_over_chance(healthy, planted.lesions).nanmean() > 0.5 * MULTIPLE[method]


def test_integrated_gradients_tell_the_classes_apart(planted, maps):
    """Nothing in a lesion speaks for a healthy eye."""
    method = "integrated_gradients"
    healthy = relevance(planted.model, planted.diseased, 0, method, steps=16).patches
    assert mass_over_chance(healthy, planted.lesions).mean() < 1.5


def test_curves_by_hand(classifier, images):
    model, pixels = classifier(), images(2)
    order = torch.arange(16.0).view(1, 4, 4).expand(2, 4, 4)
    found = deletion_and_insertion(model, pixels, order, "severe", steps=4)
    last_quarter = pixels.clone()
    last_quarter[:, :, 24:] = 0  # the last row of patches is the most relevant
    only_it = torch.zeros_like(pixels)
    only_it[:, :, 24:] = pixels[:, :, 24:]
    with torch.no_grad():
        whole, deleted, inserted, nothing = (
            model(x).logits.softmax(1)[:, 2].mean().item()
            for x in (pixels, last_quarter, only_it, torch.zeros_like(pixels))
        )
    assert found.shares.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert found.deletion[[0, 1, 4]].tolist() == pytest.approx([whole, deleted, nothing], abs=1e-6)
    assert found.insertion[[0, 1, 4]].tolist() == pytest.approx([nothing, inserted, whole], abs=1e-6)
    assert found.deletion_area == pytest.approx((found.deletion[1:] + found.deletion[:-1]).mean() / 2)


def test_mass_over_chance_by_hand():
    lesions = torch.zeros(3, 8, 8, dtype=torch.bool)
    lesions[:2, 0, 0] = True  # one of 4 x 4 patches
    patches = torch.ones(3, 4, 4)
    patches[1, 0, 0], patches[1, 3, 3] = 5, -7
    found = mass_over_chance(patches, lesions)
    assert found[:2].tolist() == pytest.approx([1, 16 * 5 / 19]) and found[2].isnan()


def test_maps_of_another_batch_are_refused(classifier, images):
    with pytest.raises(RetFoundError):
        deletion_and_insertion(classifier(), images(2), torch.ones(3, 4, 4), 0)
