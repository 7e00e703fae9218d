"""Arguments of pretraining that say what is trained, and on what task."""

from dataclasses import dataclass, field
from typing import Literal

from ..models.configuration import PRESETS
from ..runs.errors import RetFoundError, nearest
from .objectives import OBJECTIVES
from .objectives.options import ObjectiveArguments

# The other encoder that objectives without a decoder train, from random weights.
RESNET = "resnet-50"


@dataclass
class ModelArguments(ObjectiveArguments):
    config_name: str | None = field(
        default=None,
        metadata={
            "help": f"preset ({', '.join(PRESETS)}, or {RESNET} for objectives other than mae); alone: from scratch; "
            "with a ViT-MAE folder: its settings"
        },
    )
    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "start from these weights: a RETFound or ViT-MAE folder or Hub id (facebook/vit-mae-large)"},
    )
    modality: Literal["cfp", "oct"] | None = field(
        default=None, metadata={"help": "of the images; default: the preset's or the folder's"}
    )
    mask_ratio: float | None = field(
        default=None, metadata={"help": "share of hidden patches; default: the preset's (0.75 CFP, 0.85 OCT)"}
    )
    image_size: int | None = field(
        default=None, metadata={"help": "input side in pixels of a model from scratch; default: the preset's"}
    )
    objective: str = field(default="mae", metadata={"help": f"what is learned: {', '.join(OBJECTIVES)}"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.config_name is None and self.model_name_or_path is None:
            raise RetFoundError(
                "give --config_name PRESET (from scratch), --model_name_or_path FOLDER (its weights), or both"
            )
        presets = (*PRESETS,) if self.objective == "mae" else (*PRESETS, RESNET)
        if self.config_name is not None and self.config_name not in presets:
            raise RetFoundError(
                f"--config_name {self.config_name!r} is unknown{nearest(self.config_name, presets)}; --objective "
                f"{self.objective} takes: {', '.join(presets)}"
            )
        if self.mask_ratio is not None and not 0 < self.mask_ratio < 1:
            raise RetFoundError(f"--mask_ratio {self.mask_ratio} must be above 0 and below 1")
        if self.image_size is not None and self.image_size < 1:
            raise RetFoundError(f"--image_size {self.image_size} must be at least 1 pixel")
        if self.objective not in OBJECTIVES:
            raise RetFoundError(
                f"--objective {self.objective!r} is unknown{nearest(self.objective, OBJECTIVES)}; accepted: "
                f"{', '.join(OBJECTIVES)}"
            )
