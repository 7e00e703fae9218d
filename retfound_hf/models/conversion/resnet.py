"""ResNets with bottlenecks: torchvision's names to those of `ResNetModel`, which is the same network.

Both take the stride in the 3 x 3 convolution of a bottleneck.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import ResNetConfig

from .recognition import depth_of, size_of
from .tables import Row, pair

STAGES = 4
REDUCTION = 4  # of the channels within a bottleneck
IMAGE_SIZE = 224  # no tensor tells it
COUNTER = "num_batches_tracked"


def complete(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state with the counters of its batch norms, absent in files of old PyTorch; nothing uses them."""
    norms = [name.removesuffix("running_var") for name in state if name.endswith(".running_var")]
    return {f"{norm}{COUNTER}": torch.tensor(0) for norm in norms} | state


def resnet_config(state: dict[str, Tensor], modality: str | None) -> ResNetConfig:
    """Depths and widths as the tensors have them: ResNet-50, deeper ones, and SwAV's wider ones."""
    config = ResNetConfig(
        embedding_size=size_of(state, "conv1.weight", 0),
        hidden_sizes=[size_of(state, f"layer{stage + 1}.0.conv3.weight", 0) for stage in range(STAGES)],
        depths=[depth_of(state, f"layer{stage + 1}") for stage in range(STAGES)],
    )
    # What a ResNet itself need not know of its images, but the runs with it.
    config.image_size, config.modality = IMAGE_SIZE, modality
    return config


def resnet_rows(state: dict[str, Tensor]) -> Iterator[Row]:
    """Every tensor of the encoder, running statistics and counters too."""
    config = resnet_config(state, None)
    width = config.embedding_size
    yield Row("conv1.weight", ("embedder.embedder.convolution.weight",), (width, 3, 7, 7))
    yield from _norm("bn1", "embedder.embedder.normalization", width)
    for stage, (out, depth) in enumerate(zip(config.hidden_sizes, config.depths, strict=True)):
        inner = out // REDUCTION
        for index in range(depth):
            source, target = f"layer{stage + 1}.{index}", f"encoder.stages.{stage}.layers.{index}"
            shapes = ((inner, width, 1, 1), (inner, inner, 3, 3), (out, inner, 1, 1))
            for layer, shape in enumerate(shapes):
                place = f"{target}.layer.{layer}"
                yield Row(f"{source}.conv{layer + 1}.weight", (f"{place}.convolution.weight",), shape)
                yield from _norm(f"{source}.bn{layer + 1}", f"{place}.normalization", shape[0])
            if index == 0:
                shortcut = f"{target}.shortcut"
                yield Row(f"{source}.downsample.0.weight", (f"{shortcut}.convolution.weight",), (out, width, 1, 1))
                yield from _norm(f"{source}.downsample.1", f"{shortcut}.normalization", out)
            width = out


def _norm(source: str, target: str, width: int) -> Iterator[Row]:
    yield from pair(source, target, width)
    for name, shape in (("running_mean", (width,)), ("running_var", (width,)), (COUNTER, ())):
        yield Row(f"{source}.{name}", (f"{target}.{name}",), shape)
