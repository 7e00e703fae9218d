"""The objectives beside masked autoencoding, as small as they can be, on small networks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, ResNetConfig, ResNetModel

from retfound_hf import RetFoundModel
from retfound_hf.pretraining.data import ImageReader, open_shards
from retfound_hf.pretraining.objectives import OBJECTIVES
from retfound_hf.pretraining.objectives.base import Objective, ObjectiveArguments

# Options of quick runs, by the names of the flags.
SMALL: dict[str, dict[str, Any]] = {
    "simclr": {},
    "moco_v3": {"head_width": 32, "teacher_momentum": 0.9},
    "dino": {"head_width": 32, "num_prototypes": 24, "local_crops": 2, "teacher_momentum": 0.9},
    "swav": {"head_width": 32, "num_prototypes": 24, "local_crops": 2},
}
JOINT = sorted(OBJECTIVES.keys() - {"mae"})


@pytest.fixture(params=JOINT)
def joint(request) -> str:
    """The name of every objective that compares views."""
    return request.param


@pytest.fixture(scope="session")
def small_options() -> dict[str, dict[str, Any]]:
    return SMALL


@pytest.fixture(scope="session")
def resnet_folder(tmp_path_factory) -> Path:
    """A stock ResNet of two stages with random weights, saved by transformers alone."""
    folder = tmp_path_factory.mktemp("models") / "resnet"
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1])
    ResNetModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def images(shards, cache_dir) -> torch.Tensor:
    """uint8 (16, 3, 64, 64)."""
    return ImageReader(open_shards([str(shards)], str(cache_dir))).read(range(0, 160, 10))[0]


@pytest.fixture
def make_objective(tiny_config) -> Callable[..., Objective]:
    """`make_objective("simclr", temperature=0.2)`, on a small ViT with random weights or on `model`."""

    def make(name: str, model: PreTrainedModel | None = None, **options: Any) -> Objective:
        torch.manual_seed(0)
        options = ObjectiveArguments(**{**SMALL[name], **options})
        return OBJECTIVES.get(name)(model or RetFoundModel(tiny_config()), 64, options).train()

    return make
