"""Objective: a network with the loss that trains it, its recipe, and the options that a run may set of it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel, ResNetConfig, ResNetModel

from ...errors import BadArgumentError, BadModelError, require
from ...models.backbones import BACKBONES
from ...models.configuration_retfound import PRESETS, RetFoundConfig, is_adapter
from ...models.loading import load_network, network_config, read_config, read_weights, resolve
from ...models.modeling_retfound import RetFoundModel
from ...options import check_ranges

if TYPE_CHECKING:
    from ..arguments import ModelArguments

RESNET = "resnet-50"  # preset of encoders beside those of RETFound
IMAGE_SIZE = 224

# Random numbers for `count` images, drawn on the CPU: one row per image in every tensor. It is sent to the loader's
# workers, and must be light.
Draw = Callable[[int, torch.Generator], dict[str, Tensor]]


@dataclass(kw_only=True)
class ObjectiveOptions:
    """Options of an objective, by default none. Subclasses add fields by `option`; the command has a flag for each."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class Recipe:
    """Published optimisation of an objective, which a run may override; names and units as in the arguments."""

    base_learning_rate: float
    warmup_steps: float
    weight_decay: float
    final_weight_decay: float | None = None
    adam_beta2: float = 0.999
    max_grad_norm: float = 0.0
    optim: str = "adamw"


class Objective(nn.Module):
    """Network with the loss that trains it.

    All randomness comes from `draw`, which sees the images of a whole optimiser step on all processes at once: every
    process takes its rows. So the result depends neither on the number of processes nor on what was drawn before, and
    a resumed run has no generator to restore.

    All tensors of the module beside `model` (a teacher, centres, queues, heads) are the objective's own state: they
    are saved in every checkpoint as parameters and buffers.

    Attributes:
        name: value of the option `objective`.
        title: in running text, as on model cards.
        citation: authors and year.
        recipe: optimisation of the network unless the run says otherwise.
        Options: dataclass of what a run may set; an instance of it is the constructor's third argument.
        log_names: names of the values that `forward` returns beside the loss.
        preview_titles: headings of the columns of `preview`.
        supports_accumulation: the loss of a batch is the mean of the losses of its parts, so that gradients may be
            accumulated over several forward passes, and one image is enough.
        model: the network that is the result of the run.
        draw: see `Draw`.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    citation: ClassVar[str]
    Options: ClassVar[type[ObjectiveOptions]] = ObjectiveOptions
    log_names: ClassVar[tuple[str, ...]] = ()
    preview_titles: ClassVar[tuple[str, ...]] = ()
    supports_accumulation: ClassVar[bool] = False
    recipe: Recipe
    model: PreTrainedModel
    draw: Draw

    @classmethod
    def build_network(cls, args: "ModelArguments") -> PreTrainedModel:
        """The network to train, in training mode, float32: by default an encoder; see `build_encoder`."""
        return build_encoder(args)

    @property
    def encoder(self) -> PreTrainedModel:
        """The network whose features are probed."""
        return self.model.base_model

    def views(self, images: Tensor, draws: dict[str, Tensor]) -> dict[str, Tensor]:
        """The network's inputs, on the images' device and without gradients.

        Args:
            images: uint8 (batch, 3, side, side), as stored in the shards.
            draws: what `draw` gave for these images, on the same device.
        """
        raise NotImplementedError

    def before_step(self, progress: float, epochs: float) -> None:
        """Set what follows a schedule; `progress` is the finished share of the run, `epochs` how many are done."""

    def forward(self, views: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The mean loss over the batch (a scalar) and float (len(log_names),) values to log, detached."""
        raise NotImplementedError

    def frozen_parameters(self, epochs: float) -> Iterable[nn.Parameter]:
        """Trained parameters that the coming step leaves as they are."""
        return ()

    def after_step(self, progress: float) -> None:
        """Follow an optimiser step, as a momentum encoder does; `progress` is the finished share of the run."""

    def untrained_loss(self, images: Tensor, draws: dict[str, Tensor]) -> float | None:
        """Loss of a network that predicts the same for every image; None where it is unknown.

        Args:
            images, draws: as in `views`, of two images or more.
        """
        return None

    def preview(self, images: Tensor, draws: dict[str, Tensor]) -> list[list[Tensor]] | None:
        """Rows of pictures, each float (3, height, width) in 0..1, of what is learned; None where there are none.

        Args:
            images, draws: as in `views`.
        """
        return None


def check_image_size(args: "ModelArguments", stored: PreTrainedConfig) -> None:
    """Raise `BadArgumentError` for an `image_size` beside weights of another one."""
    size = getattr(stored, "image_size", None)
    if args.image_size is not None and size is not None and args.image_size != size:
        raise BadArgumentError(
            f"`image_size={args.image_size}` differs from the {size} of {args.model_name_or_path}; leave it out",
            field="image_size", value=args.image_size, accepted=[size],
        )  # fmt: skip


def preset_config(args: "ModelArguments", **settings: Any) -> RetFoundConfig:
    """Configuration of the named preset, at the given image size."""
    size = {} if args.image_size is None else {"image_size": args.image_size}
    return RetFoundConfig.from_preset(args.config_name, **settings, **size)


def build_encoder(args: "ModelArguments") -> PreTrainedModel:
    """Encoder in training mode, float32.

    A ViT becomes a `RetFoundModel`, whose positions do not train: those that a stock ViT learned stay as they come.

    Raises:
        BadArgumentError: a preset or an image size that does not fit, or an option of autoencoders.
        BadModelError: weights of another architecture or without a part of the encoder, or an adapter.
    """
    if args.mask_ratio is not None:
        raise BadArgumentError(
            "`mask_ratio` is not an option of this objective, which hides no patches; leave it out",
            field="mask_ratio", value=args.mask_ratio,
        )  # fmt: skip
    if args.model_name_or_path is None:
        require("config_name", args.config_name, (*PRESETS, RESNET))
        if args.config_name == RESNET:
            return ResNetModel(_with_input(ResNetConfig(), args)).train()  # its defaults are ResNet-50
        return RetFoundModel(preset_config(args, **({"modality": args.modality} if args.modality else {}))).train()
    if args.config_name is not None:
        raise BadArgumentError(
            "`config_name` and `model_name_or_path` exclude each other here: weights bring their sizes; pass "
            "`modality` for the kind of images",
            field="config_name", value=args.config_name,
        )  # fmt: skip
    name = resolve(args.model_name_or_path)
    if is_adapter(name):
        raise BadModelError(f"model {name} is a LoRA adapter; pretraining needs a whole model folder", model=name)
    stored = read_config(name)
    row = BACKBONES.get(stored.model_type)
    if row is None or not row.pretrains:
        titles = ", ".join(row.title for row in BACKBONES.values() if row.pretrains)
        raise BadModelError(
            f"model {name} is a {stored.model_type} model; this objective starts from one of: {titles}", model=name
        )
    check_image_size(args, stored)
    if row.retfound_options is None:  # a stock class, such as ResNet, without the classifier that may come with it
        load_network(name, stored, network_config(stored), classifier=False)  # refuses damaged weights
        return read_weights(AutoModel, name, config=_with_input(stored, args))[0].float().train()
    modality = args.modality or getattr(stored, "modality", None)
    config = network_config(stored, modality=modality, drop_path_rate=0.0)
    return load_network(name, stored, config, classifier=False)[0].float().train()


def _with_input(config: PreTrainedConfig, args: "ModelArguments") -> PreTrainedConfig:
    """Size and modality of the images, which a stock configuration lacks."""
    config.image_size = args.image_size or getattr(config, "image_size", None) or IMAGE_SIZE
    config.modality = args.modality or getattr(config, "modality", None)
    return config
