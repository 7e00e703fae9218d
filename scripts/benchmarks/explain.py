"""Do relevance maps find what is there, and what do they cost?

    python scripts/benchmarks/explain.py --out scripts/benchmarks/results/explain.json --keep my-lesions

Small classifiers learn to find one pale lesion that is planted somewhere in synthetic photographs. On photographs of
other eyes the maps of every method are measured: how many times more of a map than chance lies in the lesion, for the
diseased and for the healthy class; the same with random weights; and how fast the probability falls or rises when
patches are taken out or put in by the map's order. Cost is processor time on one thread, as a multiple of a forward
pass, of ViT-L and of the small preset. `--keep` stores the first classifier and some photographs with lesions.
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
from PIL import Image
from torch import Tensor, nn

from retfound_hf import RetFoundConfig, RetFoundForImageClassification, RetFoundImageProcessor
from retfound_hf.explain.faithfulness import deletion_and_insertion, mass_over_chance
from retfound_hf.explain.relevance import METHODS, STEPS, relevance
from retfound_hf.images.synthetic import draw_patient, render
from retfound_hf.runs.files import write_json
from retfound_hf.runs.record import git_revision, versions

SIZE, CLASSES = 64, ("healthy", "lesion")
COLOUR = (250, 232, 140)
SIZES = {
    "hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 96, "image_size": SIZE,
    "patch_size": 8,
}  # fmt: skip
PROCESSOR = RetFoundImageProcessor.for_image_size(SIZE)


def photographs(count: int, seed: int, height: int = 128) -> list[np.ndarray]:
    """Healthy synthetic photographs of as many eyes, uint8 (height, 4/3 height, 3)."""
    rngs = [np.random.default_rng((seed, index)) for index in range(count)]
    return [render(draw_patient(rng, "cfp")[0], "normal", 0.0, height, rng).image for rng in rngs]


def with_lesion(photograph: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The photograph with a pale round lesion somewhere in its field, and the lesion's pixels."""
    height, width = photograph.shape[:2]
    y, x = np.mgrid[:height, :width] + 0.5
    distance, angle = 0.3 * height * rng.uniform() ** 0.5, rng.uniform(0, 2 * np.pi)
    centre = width / 2 + distance * np.cos(angle), height / 2 + distance * np.sin(angle)
    away = np.hypot(x - centre[0], y - centre[1])
    opacity = 0.85 * np.clip((rng.uniform(0.035, 0.06) * height + 0.5 - away), 0, 1)[..., None]
    return (photograph + opacity * (np.array(COLOUR) - photograph)).astype(np.uint8), opacity[..., 0] > 0.3


def network_input(photographs: list[np.ndarray]) -> Tensor:
    return PROCESSOR([Image.fromarray(p) for p in photographs], return_tensors="pt")["pixel_values"]


def pairs(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Healthy and diseased input of the same eyes, and the lesions' pixels on that input (count, size, size)."""
    healthy, rng = photographs(count, seed), np.random.default_rng(seed)
    diseased, masks = zip(*(with_lesion(photograph, rng) for photograph in healthy), strict=True)
    plain = RetFoundImageProcessor(
        **{**PROCESSOR.to_dict(), "do_normalize": False, "do_rescale": False, "do_fundus_crop": False}
    )
    # The lesions take the way of their photograph through the fundus crop.
    boxes = [PROCESSOR.crop_box(Image.fromarray(photograph)) for photograph in diseased]
    cut = [Image.fromarray(mask.astype(np.uint8) * 255).crop(box) for mask, box in zip(masks, boxes, strict=True)]
    lesions = plain(cut, return_tensors="pt")["pixel_values"][:, 0] > 64
    same = [Image.fromarray(photograph).crop(box) for photograph, box in zip(healthy, boxes, strict=True)]
    normal = PROCESSOR(same, do_fundus_crop=False, return_tensors="pt")["pixel_values"]
    return normal, network_input(list(diseased)), lesions


def train(seed: int, steps: int, healthy: Tensor, diseased: Tensor) -> RetFoundForImageClassification:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    names = {"id2label": dict(enumerate(CLASSES)), "label2id": {name: index for index, name in enumerate(CLASSES)}}
    model = RetFoundForImageClassification(RetFoundConfig(**SIZES, **names)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for step in range(steps):
        chosen = torch.randint(len(healthy), (32,), generator=generator)
        batch = torch.cat([healthy[chosen], diseased[chosen]])
        # Both halves alike, so that nothing but the lesion tells them apart.
        batch = batch.flip([dim for dim, turn in ((-1, step % 2), (-2, step % 4 > 1)) if turn])
        optimizer.zero_grad()
        model(batch, labels=torch.arange(64) // 32).loss.backward()
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


def measured(model: nn.Module, healthy: Tensor, diseased: Tensor, lesions: Tensor) -> dict[str, Any]:
    """One classifier's numbers by method; `random_order` holds the curves of shuffled maps."""
    with torch.no_grad():
        sick, well = (model(x).logits.softmax(1)[:, 1] for x in (diseased, healthy))
    found: dict[str, Any] = {"auroc": float((sick[:, None] > well).float().mean())}
    random, grid = with_random_weights(model), SIZE // SIZES["patch_size"]
    shuffled = torch.rand(len(healthy), grid, grid, generator=torch.Generator().manual_seed(0))
    for method in METHODS:
        maps, other_class, no_weights = (
            relevance(network, diseased, target, method).patches
            for network, target in ((model, 1), (model, 0), (random, 1))
        )
        curves = deletion_and_insertion(model, diseased, maps, 1, empty=healthy)
        found[method] = {
            "times_chance_in_lesion": float(mass_over_chance(maps, lesions).mean()),
            "healthy_class": float(mass_over_chance(other_class, lesions).mean()),
            "random_weights": float(mass_over_chance(no_weights, lesions).mean()),
            "rank_correlation_with_random_weights": rank_correlation(maps, no_weights),
            "deletion": curves.deletion_area,
            "insertion": curves.insertion_area,
        }
    curves = deletion_and_insertion(model, diseased, shuffled, 1, empty=healthy)
    found["random_order"] = {"deletion": curves.deletion_area, "insertion": curves.insertion_area}
    return found


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
    """The classifier as a folder, and photographs of unseen eyes of 480 x 640 pixels, half of them with a lesion."""
    model.save_pretrained(folder / "classifier")
    PROCESSOR.save_pretrained(folder / "classifier")
    rng = np.random.default_rng(3)
    for index, photograph in enumerate(photographs(8, seed=3, height=480)):
        name = CLASSES[index % 2]
        picture = with_lesion(photograph, rng)[0] if name == "lesion" else photograph
        path = folder / "images" / name / f"{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path, quality=95)


def main() -> None:
    parser = argparse.ArgumentParser(description="Sanity and cost of relevance maps.")
    parser.add_argument("--out", required=True, help="JSON file to write")
    parser.add_argument("--keep", help="folder for a classifier and images to explain")
    parser.add_argument("--seeds", type=int, default=2, help="classifiers to train")
    parser.add_argument("--steps", type=int, default=250, help="of training, 64 images each")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    train_pairs, test_pairs = pairs(256, seed=1), pairs(48, seed=2)
    rows = []
    for seed in range(arguments.seeds):
        model = train(seed, arguments.steps, *train_pairs[:2])
        rows.append({"seed": seed, **measured(model, *test_pairs)})
        print(rows[-1], flush=True)
        if seed == 0 and arguments.keep:
            keep(Path(arguments.keep), model)
    costs = {"retfound-tiny": cost("retfound-tiny", 4), "retfound-cfp": cost("retfound-cfp", 1)}
    record = {
        "what": "relevance maps of small classifiers of one planted lesion; cost at 224 px in processor time",
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
