"""Arguments of the command `explain`."""

from dataclasses import dataclass, field
from typing import Literal

from ..inference.arguments import ForwardArguments
from ..runs.errors import RetFoundError

RECONSTRUCTION = "reconstruction"
PREDICTED, LABEL = "predicted", "label"


@dataclass
class ExplainArguments:
    model_name_or_path: str = field(metadata={"help": "fine-tuned folder or adapter; for reconstruction a pretrained"})
    data: str = field(metadata={"help": "an image, a folder, a CSV or parquet table, or a folder of shards"})
    method: Literal["relevance", "relprop", "rollout", "integrated_gradients", "reconstruction"] = field(
        default="relevance", metadata={"help": "how the maps are made, or what the autoencoder paints"}
    )
    target: str = field(
        default=PREDICTED, metadata={"help": "class to explain: a name, `predicted`, or `label` for each image's own"}
    )
    split: str | None = field(
        default=None, metadata={"help": "split of a labelled set (train, val, test, all); default: every image"}
    )
    label_column: str = field(default="label", metadata={"help": "column of a table that `--target label` reads"})
    steps: int = field(default=32, metadata={"help": "of integrated gradients"})
    mask_ratio: float | None = field(
        default=None, metadata={"help": "share of hidden patches in a reconstruction; default: the model's"}
    )
    picture_size: int = field(
        default=1024, metadata={"help": "longest side of the pictures in pixels, 0 for the image's own"}
    )
    opacity: float = field(default=0.75, metadata={"help": "of the overlay where relevance is high, 0 to 1"})
    max_images: int = field(default=0, metadata={"help": "explain only the first images, 0 for all"})
    sheet_images: int = field(default=24, metadata={"help": "images on the contact sheet"})

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("picture_size", 0), ("max_images", 0), ("sheet_images", 1)):
            if getattr(self, name) < least:
                raise RetFoundError(f"--{name} {getattr(self, name)} must be at least {least}")
        if not 0 <= self.opacity <= 1:
            raise RetFoundError(f"--opacity {self.opacity} is out of range; give a number from 0 to 1")
        if self.mask_ratio is not None and not 0 <= self.mask_ratio < 1:
            raise RetFoundError(f"--mask_ratio {self.mask_ratio} is out of range; give a number from 0 to below 1")
        if self.mask_ratio is not None and self.method != RECONSTRUCTION:
            raise RetFoundError("--mask_ratio belongs to --method reconstruction; leave it out")
        if self.method == RECONSTRUCTION and self.target != PREDICTED:
            raise RetFoundError("a reconstruction has no class; leave --target out")


@dataclass
class ExplainForwardArguments(ForwardArguments):
    per_device_eval_batch_size: int = field(default=8, metadata={"help": "images per step"})
    seed: int = field(default=0, metadata={"help": "of the hidden patches; with an image's id it gives its mask"})
