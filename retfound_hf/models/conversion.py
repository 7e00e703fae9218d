"""Conversion of a `.pth` checkpoint to a model folder, and the command `convert_checkpoint`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file

from ..errors import RetFoundError
from ..files import atomic_folder, refuse_existing
from ..options import parse_arguments
from ..record import write_run_record
from .cards import write_converted_card, write_other_card
from .configuration_retfound import MODALITIES
from .image_processing_retfound import RetFoundImageProcessor
from .official_checkpoints import configure, dinov2_state, head_norm_of, kind_of, modality_of, read_checkpoint, rename
from .other_checkpoints import NATURAL, configure_other, other_encoder
from .starting_points import OFFICIAL_LICENSE

ARCHITECTURES = {
    "autoencoder": "RetFoundForPreTraining",
    "encoder": "RetFoundModel",
    "classifier": "RetFoundForImageClassification",
    "dinov2": "Dinov2Model",
    "vit": "RetFoundModel",
    "resnet": "ResNetModel",
}


def convert_checkpoint(
    source: str | Path,
    output_dir: str | Path,
    modality: str | None = None,
    head_norm: str = "auto",
    class_names: Sequence[str] | None = None,
    overwrite: bool = False,
) -> Path:
    """Turn an official checkpoint, RETFound's or another method's, into a folder that `from_pretrained` loads.

    Args:
        source: a `.pth` file, or a Hub id such as `YukunZhou/RETFound_mae_natureCFP`.
        output_dir: the folder to make; it appears whole or not at all.
        modality: `cfp` or `oct`; read from the name of the source where that tells. Encoders of SimCLR, SwAV, MoCo v3
            and DINO need none; `none` says of a bare ViT that it saw no retinal images.
        head_norm: of fine-tuned files: `single`, `double`, or `auto` to read it from the saved arguments.
        class_names: of fine-tuned files: names of the classes, in the order of the head.

    Returns:
        The folder: a RetFound model (autoencoder, encoder or classifier), or a stock `Dinov2Model` or `ResNetModel`.

    Raises:
        RetFoundError: anything that is not a complete checkpoint of a known kind.
    """
    refuse_existing(output_dir, overwrite)
    path = locate(source)
    checkpoint = read_checkpoint(path)
    other = other_encoder(checkpoint, modality)
    kind = other.kind if other else kind_of(checkpoint)
    modality = _modality(modality, path, source, kind, bool(other))
    if class_names and kind != "classifier":
        raise RetFoundError(f"class names were given, but {source} is a pretrained {kind} without a head")
    if other:
        config, state, rows = configure_other(checkpoint, other, modality)
    else:
        state = dinov2_state(checkpoint.state) if kind == "dinov2" else checkpoint.state
        options = {}
        if kind == "classifier":
            options = {"head_norm": head_norm_of(checkpoint, head_norm), "class_names": class_names}
        config, rows = configure(checkpoint, kind, state, modality, **options)
    tensors = rename(state, rows)
    if kind == "classifier":
        # Fine-tuned files have no final norm; `AutoModel` finds the one that changes nothing but scale.
        tensors["vit.layernorm.weight"] = torch.ones(config.hidden_size)
        tensors["vit.layernorm.bias"] = torch.zeros(config.hidden_size)
    config.architectures = [ARCHITECTURES[kind]]
    config.dtype = "float32"
    config.weights_license = other.license if other else OFFICIAL_LICENSE
    with atomic_folder(output_dir, overwrite) as folder:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        config.save_pretrained(folder)
        processor = processor_of(kind, modality, config.image_size)
        processor.save_pretrained(folder)
        name = Path(output_dir).name
        if other:
            write_other_card(folder, name, other, modality, checkpoint, config, processor)
        else:
            write_converted_card(folder, name, kind, modality, source, checkpoint, config, processor)
    return Path(output_dir)


def _modality(asked: str | None, path: Path, source: str | Path, kind: str, natural: bool) -> str | None:
    modality = asked or modality_of(path.name) or modality_of(str(source))
    if modality in MODALITIES:
        return modality
    if natural and modality in (None, NATURAL):
        return None
    accepted = ", ".join(MODALITIES) + (f", or {NATURAL} for weights of natural images" if kind == "encoder" else "")
    raise RetFoundError(
        f"modality of {source} is {'not told by its name' if modality is None else repr(modality)}; "
        f"pass --modality with one of: {accepted}"
    )


def processor_of(kind: str, modality: str | None, image_size: int) -> RetFoundImageProcessor:
    """The preprocessing of the official code for weights of this kind and input size."""
    if kind == "classifier":
        # Its owner fine-tuned and evaluated on images as they were, the shorter side resized.
        shorter = RetFoundImageProcessor.for_image_size(image_size).size["height"]
        size, crop_size = {"shortest_edge": shorter}, {"height": image_size, "width": image_size}
        return RetFoundImageProcessor(do_fundus_crop=False, size=size, crop_size=crop_size)
    # RETFound feeds DINOv2 with 224 pixels, although its positions are those of 518.
    return RetFoundImageProcessor.for_image_size(
        224 if kind == "dinov2" else image_size, do_fundus_crop=modality != "oct"
    )


def locate(source: str | Path) -> Path:
    """The local file of a source: itself, or the `.pth` of a Hub repository, fetched with the user's token."""
    path = Path(source)
    if path.exists() or path.suffix in (".pth", ".pt", ".bin") or str(source).count("/") != 1:
        return path
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    name = str(source).split("/")[1]
    try:
        return Path(hf_hub_download(str(source), f"{name}.pth"))
    except GatedRepoError as error:
        raise RetFoundError(
            f"{source} is gated: ask for access on its Hub page, then `hf auth login` with a token of that account"
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise RetFoundError(
            f"{source} is neither a local file nor a Hub repository that your token can see"
        ) from error
    except LocalEntryNotFoundError as error:
        raise RetFoundError(
            f"{source} is no local file, and the Hub cannot be reached; download {name}.pth elsewhere, give its path"
        ) from error
    except HfHubHTTPError as error:
        raise RetFoundError(f"{source} could not be fetched from the Hub: {error}") from error


@dataclass
class ConvertArguments:
    checkpoint: str = field(
        metadata={
            "positional": True,
            "help": "official .pth file (RETFound, SimCLR, SwAV, MoCo v3, DINO), or a Hub id",
        }
    )
    out: str = field(metadata={"positional": True, "help": "model folder to make"})
    modality: Literal["auto", "cfp", "oct", "none"] = field(
        default="auto",
        metadata={"help": "what the weights were trained on, none for natural images; auto reads it from the name"},
    )
    head_norm: Literal["auto", "single", "double"] = field(
        default="auto",
        metadata={"help": "fine-tuned files: single for the code of 2023, double for the code since February 2025"},
    )
    class_names: list[str] | None = field(
        default=None, metadata={"help": "fine-tuned files: class names in the order of the head"}
    )
    overwrite_output_dir: bool = field(default=False, metadata={"help": "replace the output folder"})


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments, convert, and say where the folder is."""
    (arguments,) = parse_arguments(
        ConvertArguments, argv=argv, description="Official .pth checkpoint -> model folder."
    )
    folder = convert_checkpoint(
        arguments.checkpoint,
        arguments.out,
        modality=None if arguments.modality == "auto" else arguments.modality,
        head_norm=arguments.head_norm,
        class_names=arguments.class_names,
        overwrite=arguments.overwrite_output_dir,
    )
    write_run_record(folder, "convert_checkpoint", arguments)
    print(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
