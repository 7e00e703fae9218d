"""Do relevance maps find what is there, do they tell classes apart, and what do they cost?

    python scripts/benchmarks/explain.py --out scripts/benchmarks/results/explain.json --keep my-lesions

Small classifiers learn to find a pale and a dark lesion, planted anywhere in synthetic photographs. On photographs of
other eyes, each with both lesions, the maps of every method are measured: how many times more of a finding's map than
chance lies in its own lesion, and how many times more in the other one; the first with random weights; and how fast
the probability falls or rises when patches are taken out or put in by the map's order. Cost is processor time on one
thread, as a multiple of a forward pass, of ViT-L and of the small preset. `--keep` stores the first classifier and
some photographs with both lesions.
"""

import argparse
import copy
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from faithfulness import deletion_and_insertion, mass_over_chance
from PIL import Image
from torch import Tensor, nn

from retfound_hf import RetFoundConfig, RetFoundForImageClassification, RetFoundImageProcessor
from retfound_hf.explanation.relevance import METHODS, STEPS, relevance
from retfound_hf.files import write_json
from retfound_hf.images.synthetic import draw_patient, render
from retfound_hf.record import git_revision, versions

SIZE = 64
FINDINGS = {"pale": (250, 232, 140), "dark": (15, 5, 30)}
SIZES = {
    "hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 96, "image_size": SIZE,
    "patch_size": 8,
}  # fmt: skip
PROCESSOR = RetFoundImageProcessor.for_image_size(SIZE)
PLAIN = RetFoundImageProcessor(**{**PROCESSOR.to_dict(), "do_normalize": False, "do_rescale": False})
Place = tuple[float, float]


def photographs(count: int, seed: int, height: int = 128) -> list[np.ndarray]:
    """Healthy synthetic photographs of as many eyes, uint8 (height, 4/3 height, 3)."""
    rngs = [np.random.default_rng((seed, index)) for index in range(count)]
    return [render(draw_patient(rng, "cfp")[0], "normal", 0.0, height, rng).image for rng in rngs]


def two_places(height: int, width: int, rng: np.random.Generator) -> list[Place]:
    """Two points within the field, a quarter of the height or more apart."""
    while True:
        distances, angles = 0.3 * height * rng.uniform(size=2) ** 0.5, rng.uniform(0, 2 * np.pi, size=2)
        places = [
            (width / 2 + d * np.cos(a), height / 2 + d * np.sin(a)) for d, a in zip(distances, angles, strict=True)
        ]
        if np.hypot(*np.subtract(*places)) > height / 4:
            return places


def with_lesion(photograph: np.ndarray, finding: str, place: Place, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """The photograph with a round lesion, and the lesion's pixels; the radius is a share of the height."""
    height, width = photograph.shape[:2]
    y, x = np.mgrid[:height, :width] + 0.5
    opacity = 0.85 * np.clip(radius * height + 0.5 - np.hypot(x - place[0], y - place[1]), 0, 1)[..., None]
    colour = np.array(FINDINGS[finding])
    return (photograph + opacity * (colour - photograph)).astype(np.uint8), opacity[..., 0] > 0.3


def diseased(photograph: np.ndarray, rng: np.random.Generator) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    """An eye with either lesion and with both, and the pixels of each lesion; both have their places throughout."""
    places, radii = two_places(*photograph.shape[:2], rng), rng.uniform(0.035, 0.06, size=2)
    lesions = list(zip(FINDINGS, places, radii, strict=True))
    alone, masks = zip(*(with_lesion(photograph, *lesion) for lesion in lesions), strict=True)
    both, _ = with_lesion(alone[0], *lesions[1])
    return {**dict(zip(FINDINGS, alone, strict=True)), "both": both}, list(masks)


def network_inputs(count: int, seed: int) -> tuple[dict[str, Tensor], Tensor]:
    """Input of the same eyes healthy (`none`), with either lesion and with `both`; the lesions' pixels on it.

    Returns:
        (count, 3, size, size) by state; bool (findings, count, size, size).
    """
    rng, states, masks = np.random.default_rng(seed), [], []
    for healthy in photographs(count, seed):
        sick, lesions = diseased(healthy, rng)
        # One crop for all, lest it tell them apart; the lesions' pixels take the same way.
        box = PROCESSOR.crop_box(Image.fromarray(healthy))
        cut = [Image.fromarray(image).crop(box) for image in (healthy, *sick.values())]
        states.append(PROCESSOR(cut, do_fundus_crop=False, return_tensors="pt")["pixel_values"])
        cut = [Image.fromarray(mask.astype(np.uint8) * 255).crop(box) for mask in lesions]
        masks.append(PLAIN(cut, do_fundus_crop=False, return_tensors="pt")["pixel_values"][:, 0] > 64)
    by_state = dict(zip(("none", *FINDINGS, "both"), torch.stack(states, dim=1), strict=True))
    return by_state, torch.stack(masks, dim=1)


def train(seed: int, steps: int, eyes: dict[str, Tensor]) -> RetFoundForImageClassification:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    names = {"id2label": dict(enumerate(FINDINGS)), "label2id": {name: index for index, name in enumerate(FINDINGS)}}
    config = RetFoundConfig(**SIZES, **names, problem_type="multi_label_classification")
    model = RetFoundForImageClassification(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    labels = torch.tensor([[state in (name, "both") for name in FINDINGS] for state in eyes]).float()
    for step in range(steps):
        chosen = torch.randint(len(eyes["none"]), (16,), generator=generator)
        # The same eyes in every state, turned alike, so that nothing but the lesions tells them apart.
        batch = torch.cat([images[chosen] for images in eyes.values()])
        batch = batch.flip([dim for dim, turn in ((-1, step % 2), (-2, step % 4 > 1)) if turn])
        optimizer.zero_grad()
        model(batch, labels=labels.repeat_interleave(16, dim=0)).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()


def with_random_weights(model: nn.Module) -> nn.Module:
    """Every tensor drawn anew with its own mean and spread (Adebayo et al. 2018)."""
    other, generator = copy.deepcopy(model), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            if "position" not in name and parameter.std() > 0:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(parameter.mean() + parameter.std() * noise)
    return other


def rank_correlation(first: Tensor, second: Tensor) -> float:
    ranks = [maps.flatten(1).argsort(1).argsort(1).float() for maps in (first, second)]
    return float(torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(*ranks, strict=True)]).mean())


def measured(model: nn.Module, eyes: dict[str, Tensor], lesions: Tensor) -> dict[str, Any]:
    """One classifier's numbers by method, means over eyes and findings; `random_order`: curves of shuffled maps."""
    with torch.no_grad():
        found_right = [
            (model(images).logits > 0) == torch.tensor([state in (name, "both") for name in FINDINGS])
            for state, images in eyes.items()
        ]
    random, grid, images = with_random_weights(model), SIZE // SIZES["patch_size"], eyes["both"]
    shuffled = torch.rand(len(images), grid, grid, generator=torch.Generator().manual_seed(0))
    # Patches that are taken out of the eye with both lesions are replaced by the eye without the explained one.
    without = [eyes[other] for other in reversed(FINDINGS)]
    rows: dict[str, list[dict[str, float]]] = {method: [] for method in (*METHODS, "random_order")}
    for method in METHODS:
        for target in range(len(FINDINGS)):
            maps, no_weights = (relevance(network, images, target, method).patches for network in (model, random))
            own, other = (mass_over_chance(maps, lesions[one]) for one in (target, 1 - target))
            rows[method].append(
                {
                    "own_lesion": float(own.nanmean()),
                    "other_lesion": float(other.nanmean()),
                    "own_above_other": float((own > other).float().mean()),
                    "empty_maps": float(own.isnan().float().mean()),
                    "random_weights": float(mass_over_chance(no_weights, lesions[target]).nanmean()),
                    "rank_correlation_with_random_weights": rank_correlation(maps, no_weights),
                    **areas(model, images, maps, target, without[target]),
                }
            )
    for target in range(len(FINDINGS)):
        rows["random_order"].append(areas(model, images, shuffled, target, without[target]))
    means = {
        method: {name: float(np.mean([row[name] for row in each])) for name in each[0]}
        for method, each in rows.items()
    }
    return {"findings_told_right": float(torch.cat(found_right).float().mean()), **means}


def areas(model: nn.Module, images: Tensor, maps: Tensor, target: int, empty: Tensor) -> dict[str, float]:
    curves = deletion_and_insertion(model, images, maps, target, empty=empty)
    return {"deletion": curves.deletion_area, "insertion": curves.insertion_area}


def cost(preset: str, batch: int) -> dict[str, float]:
    """Processor seconds of a forward pass per image, and the methods' cost as multiples of it.

    Integrated gradients are measured with fewer steps, of which all cost the same, and carried on to `STEPS`.
    """
    torch.manual_seed(0)
    model = RetFoundForImageClassification(RetFoundConfig.from_preset(preset, num_labels=3)).eval()
    pixels = torch.randn(batch, 3, 224, 224)

    def seconds(action: Callable[[], Any]) -> float:
        times = []
        for _ in range(2):  # the first one warms up
            start = time.process_time()
            action()
            times.append(time.process_time() - start)
        return min(times) / batch

    with torch.no_grad():
        forward = seconds(lambda: model(pixels))
    found = {"forward_seconds_per_image": forward}
    for method in METHODS:
        few = 2 if method == "integrated_gradients" else STEPS
        found[method] = seconds(lambda: relevance(model, pixels, 1, method, few)) / forward * STEPS / few  # noqa: B023
    return {name: round(value, 4) for name, value in found.items()}


def keep(folder: Path, model: RetFoundForImageClassification) -> None:
    """The classifier as a folder, and photographs of three unseen eyes, 480 x 640 pixels, with both lesions."""
    model.save_pretrained(folder / "classifier")
    PROCESSOR.save_pretrained(folder / "classifier")
    (folder / "images").mkdir(exist_ok=True)
    rng = np.random.default_rng(3)
    for index, photograph in enumerate(photographs(3, seed=3, height=480)):
        Image.fromarray(diseased(photograph, rng)[0]["both"]).save(folder / "images" / f"{index}.jpg", quality=95)


def main() -> None:
    parser = argparse.ArgumentParser(description="Sanity and cost of relevance maps.")
    parser.add_argument("--out", required=True, help="JSON file to write")
    parser.add_argument("--keep", help="folder for a classifier and images to explain")
    parser.add_argument("--seeds", type=int, default=3, help="classifiers to train")
    parser.add_argument("--steps", type=int, default=600, help="of training, 64 images each")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    (learned, _), unseen = network_inputs(256, seed=1), network_inputs(48, seed=2)
    rows = []
    for seed in range(arguments.seeds):
        model = train(seed, arguments.steps, learned)
        rows.append({"seed": seed, **measured(model, *unseen)})
        print(rows[-1], flush=True)
        if seed == 0 and arguments.keep:
            keep(Path(arguments.keep), model)
    costs = {"retfound-tiny": cost("retfound-tiny", 4), "retfound-cfp": cost("retfound-cfp", 1)}
    record = {
        "what": "relevance maps of small classifiers of two planted lesions; cost at 224 px in processor time",
        "machine": platform.machine(),
        "versions": versions(),
        "git_revision": git_revision(),
        "steps_of_integrated_gradients": STEPS,
        "sanity": rows,
        "cost": costs,
    }
    write_json(arguments.out, record)


if __name__ == "__main__":
    main()
