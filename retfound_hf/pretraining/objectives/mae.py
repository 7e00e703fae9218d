"""Masked autoencoding (He et al. 2022), the objective of RETFound."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ...errors import BadArgumentError
from ...images.batch_transforms import crop_resize, draw_crops, draw_flips, normalize
from ...models.configuration_retfound import PRESETS, RetFoundConfig
from ...models.loading import check_has_decoder, load_autoencoder, resolve
from ...models.modeling_retfound import RetFoundForPreTraining
from ...models.reconstruction import reconstruct
from ...vocabulary import MODALITIES
from .base import Objective, ObjectiveOptions, Recipe, check_image_size, preset_config

if TYPE_CHECKING:
    from ..arguments import ModelArguments

# Dictated by the weights; all else in a configuration is a setting of the run.
SIZES = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "image_size", "patch_size",
    "num_channels", "qkv_bias", "hidden_act", "decoder_hidden_size", "decoder_num_hidden_layers",
    "decoder_num_attention_heads", "decoder_intermediate_size",
)  # fmt: skip


def build_autoencoder(args: "ModelArguments") -> RetFoundForPreTraining:
    """Masked autoencoder in training mode, float32; a named modality brings the mask ratio of the paper.

    Raises:
        BadArgumentError: a preset or an image size that does not fit the weights.
        BadModelError: weights without decoder.
    """
    settings: dict[str, Any] = {"drop_path_rate": 0.0}
    if args.modality is not None:
        settings |= {"modality": args.modality, "mask_ratio": MODALITIES[args.modality].mask_ratio}
    if args.mask_ratio is not None:
        settings["mask_ratio"] = args.mask_ratio
    if args.model_name_or_path is None:
        return RetFoundForPreTraining(preset_config(args, **settings)).train()
    name = resolve(args.model_name_or_path)
    stored = check_has_decoder(name)
    check_image_size(args, stored)
    preset = RetFoundConfig.from_preset(args.config_name) if args.config_name else stored
    for size in SIZES:
        if getattr(preset, size) != getattr(stored, size):
            raise BadArgumentError(
                f"`config_name={args.config_name}` has {size} {getattr(preset, size)}, and {name} has "
                f"{getattr(stored, size)}; leave `config_name` out, and pass `modality`",
                field="config_name", value=args.config_name,
            )  # fmt: skip
    own = stored.to_dict() if stored.model_type == "retfound" else {}
    own = {key: value for key, value in own.items() if key not in ("model_type", "transformers_version")}
    sizes = {size: getattr(stored, size) for size in SIZES}
    config = RetFoundConfig(**{**own, **PRESETS.get(args.config_name, {}), **sizes, **settings})
    return load_autoencoder(name, config).float().train()


@dataclass(frozen=True)
class MaskedAutoencodingDraw:
    """Crop, flip and mask noise of each image.

    Args:
        side: of the stored images in pixels.
        patches: of the network's input.
    """

    side: int
    patches: int

    def __call__(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """`crops` int64 (count, 4), `flips` bool (count,), `noise` float32 (count, patches)."""
        return {
            "crops": draw_crops(count, self.side, self.side, generator),
            "flips": draw_flips(count, generator),
            "noise": torch.rand(count, self.patches, generator=generator),
        }


class MaskedAutoencoding(Objective):
    """Random resized crop (0.2 to 1 of the area), flip, mask; mean squared error of the hidden patches.

    Args:
        model: with its decoder.
        side: of the stored images in pixels.
    """

    name = "mae"
    title = "masked autoencoding"
    citation = "He et al. 2022"
    preview_titles: ClassVar[tuple[str, ...]] = ("original", "masked", "reconstructed")
    supports_accumulation: ClassVar[bool] = True
    # Zhou et al. (2023), Methods: warm-up of 15 of 800 epochs to 1e-3, at 1,792 images a step; else He et al. (2022).
    recipe = Recipe(base_learning_rate=1e-3 * 256 / 1792, warmup_steps=15 / 800, weight_decay=0.05, adam_beta2=0.95)

    def __init__(self, model: RetFoundForPreTraining, side: int, options: ObjectiveOptions | None = None):
        super().__init__()
        self.model = model
        self.size = model.config.image_size
        # On the device with the network: a copy from the host at every step would make the two wait for each other.
        self.register_buffer("mean", torch.tensor(IMAGENET_DEFAULT_MEAN), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_DEFAULT_STD), persistent=False)
        self.draw = MaskedAutoencodingDraw(side, (self.size // model.config.patch_size) ** 2)

    @classmethod
    def build_network(cls, args: "ModelArguments") -> RetFoundForPreTraining:
        return build_autoencoder(args)

    def views(self, images: Tensor, draws: dict[str, Tensor]) -> dict[str, Tensor]:
        """`pixel_values` float32 (batch, 3, size, size) and `noise`."""
        pixels = crop_resize(images, draws["crops"], self.size, draws["flips"])
        return {"pixel_values": normalize(pixels, self.mean, self.std), "noise": draws["noise"]}

    def forward(self, views: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The loss of `RetFoundForPreTraining`: every image hides as many patches, so it is a mean over images."""
        loss = self.model(**views, predict_all=False).loss
        return loss, loss.new_zeros(0)

    def untrained_loss(self, images: Tensor, draws: dict[str, Tensor]) -> float:
        """Mean squared error of the mean patch at each place: variance of the targets over the images."""
        return float(self.model.patch_targets(self.views(images, draws)["pixel_values"]).var(dim=0).mean())

    def preview(self, images: Tensor, draws: dict[str, Tensor]) -> list[list[Tensor]]:
        """Whole images instead of crops."""
        count, _, height, width = images.shape
        whole = torch.tensor([0, 0, height, width], device=images.device).expand(count, 4)
        pixels = normalize(crop_resize(images, whole, self.size), self.mean, self.std)
        found = reconstruct(self.model, pixels, draws["noise"])
        return [list(row) for row in zip(found.original, found.masked, found.reconstructed, strict=True)]
