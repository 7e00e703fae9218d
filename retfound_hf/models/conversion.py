"""Conversion of a `.pth` checkpoint of RETFound or another method, and the command `convert_checkpoint`."""

import argparse
import hashlib
import pickle
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..errors import BadArgumentError, BadModelError, join_names, one_line, require
from ..files import atomic_folder, refuse_existing
from ..hub_access import translate_hub_errors
from ..options import parse_arguments
from ..record import write_run_record
from ..vocabulary import MODALITIES
from .cards import write_converted_card
from .image_processing_retfound import RetFoundImageProcessor
from .key_tables import COUNTER, configure, rename
from .loading import OFFICIAL_LICENSE

# Keys of the weights in the official codes: MAE and fine-tuning under `model`, DINO and DINOv2 under `teacher`,
# MoCo v3 and most copies of SimCLR under `state_dict`.
STATE_KEYS = ("model", "teacher", "state_dict")
# And the library VISSL, which published SimCLR's for PyTorch, four dicts down.
VISSL_KEYS = ("classy_state_dict", "base_model", "model", "trunk")
# Class that the folder of each kind is made for.
ARCHITECTURES = {
    "autoencoder": "RetFoundForPreTraining",
    "encoder": "RetFoundModel",
    "classifier": "RetFoundForImageClassification",
    "dinov2": "Dinov2Model",
    "vit": "RetFoundModel",
    "resnet": "ResNetModel",
}
NATURAL = "none"  # the modality of weights of natural images, where a user has to say it
# Model names that the fine-tuning codes save, and how often the classifier applies its norm.
HEAD_NORM_OF_MODEL = {"vit_large_patch16": "single", "RETFound_mae": "double"}
# A word of its own, or capitals after small letters.
MODALITY_WORD = r"(?<![A-Z])(?:CFP|OCT)(?![A-Za-z])|(?<![A-Za-z])(?:cfp|oct)(?![A-Za-z])"
# Projection heads that the DINOv2 teacher carries for its loss; models have no use for them.
DINOV2_LOSS_HEADS = ("dino_head.", "ibot_head.")
# For other methods: a tensor that tells the architecture, and whose name tells the prefix of the encoder.
MARKS = {"resnet": "layer1.0.conv1.weight", "vit": "blocks.0.attn.qkv.weight"}
# Of a file's two encoders the one that the released evaluation takes; the other is its moving average.
EVALUATED = ("base_encoder.", "encoder_q.")
# Parts beside an encoder that serve a loss alone.
HEADS = (
    "fc", "head", "heads", "classifier", "projection_head", "projection", "projector", "predictor", "prototypes",
    "queue", "queue_ptr",
)  # fmt: skip
DINO_NAME = r"(?<![a-z])dino(?![a-z0-9])"  # dino_vitbase16_pretrain.pth, and not DINOv2
LICENSES = {"RETFound": OFFICIAL_LICENSE, "SwAV": "cc-by-nc-4.0", "MoCo v3": "cc-by-nc-4.0", "DINO": "apache-2.0"}


@dataclass(frozen=True)
class CheckpointFile:
    """Content of a checkpoint file.

    Attributes:
        path: the file.
        state: weights by the names in the file; those of the network alone once it is recognised.
        origin: the key that held them, such as `model` or `teacher`, or None for a bare state dict.
        args: training arguments saved beside them, empty when there were none.
        kind: key of `ARCHITECTURES`, once recognised.
        method: that trained the weights, "RETFound" or another; None where the file does not tell.
    """

    path: Path
    state: dict[str, Tensor]
    origin: str | None
    args: dict[str, Any]
    kind: str = ""
    method: str | None = None

    @cached_property
    def sha256(self) -> str:
        """Hash of the file: seconds of reading, which no refusal should cost."""
        return sha256_of(self.path)

    @property
    def license(self) -> str | None:
        """Of the method's released weights, in the Hub's words; None where the file does not tell."""
        return LICENSES.get(self.method or "")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_checkpoint(path: str | Path) -> CheckpointFile:
    """Read a `.pth` file of RETFound or of another method.

    Only tensors, plain containers and `argparse.Namespace` are unpickled; anything else is refused before it runs.

    Raises:
        BadModelError: no such file, not a checkpoint, a pickle with other objects, or no weights in it.
    """
    path = Path(path)
    if not path.is_file():
        raise BadModelError(
            f"checkpoint {path} does not exist; give a .pth file or a Hub id such as ORG/NAME", model=path
        )
    content = _load(path)
    if not isinstance(content, dict):
        raise BadModelError(
            f"checkpoint {path} holds a {type(content).__name__}; expected a dict of tensors", model=path
        )
    origin = next((key for key in STATE_KEYS if isinstance(content.get(key), dict)), None)
    state = content[origin] if origin else content
    trunk: Any = content
    for key in VISSL_KEYS:
        trunk = trunk.get(key) if isinstance(trunk, dict) else None
    if isinstance(trunk, dict):
        origin, state = VISSL_KEYS[-1], trunk
    others = [str(name) for name, value in state.items() if not isinstance(name, str) or not isinstance(value, Tensor)]
    if others or not state:
        raise BadModelError(
            f"checkpoint {path} has no weights under {' or '.join(map(repr, STATE_KEYS))} and is not a state dict: "
            f"found {join_names(others) or 'nothing'}",
            model=path,
        )
    if odd := [name for name, tensor in state.items() if not _is_plain(tensor)]:
        raise BadModelError(
            f"checkpoint {path} has tensors that are no plain numbers in memory: {join_names(odd)}", model=path
        )
    args = content.get("args") if origin else None
    if isinstance(args, argparse.Namespace):
        args = vars(args)
    return CheckpointFile(path, state, origin, args if isinstance(args, dict) else {})


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is real, dense and holds its own numbers; a view can make one number into a billion."""
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_complex() or tensor.is_quantized:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _load(path: Path) -> Any:
    with path.open("rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
    with torch.serialization.safe_globals([argparse.Namespace]):
        try:
            # Memory-mapped, so that the optimiser state of a 4 GB file is never read.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
        except pickle.UnpicklingError as error:
            # The name alone: torch goes on to advise how to let it through.
            asked = re.search(r"GLOBAL (\S+)", str(error))
            reason = f"it asks for {asked[1]}" if asked else "it is not a PyTorch file"
            raise BadModelError(
                f"checkpoint {path} is refused, nothing in it was run: {reason}, and only tensors, plain containers "
                "and argparse.Namespace are read",
                model=path,
            ) from error
        except Exception as error:  # files can be wrong in every way
            raise BadModelError(
                f"checkpoint {path} cannot be read, it may be cut short or not a PyTorch file: {one_line(error)}",
                model=path,
            ) from error


def recognise(file: CheckpointFile, modality: str | None = None) -> CheckpointFile:
    """The file with its kind, its method and the tensors of its network alone, under plain names.

    A bare ViT could be RETFound's or another method's; DINO's is known by the file's name, others by `modality`
    being "none".

    Raises:
        BadModelError: no known format, or several encoders in one file.
    """
    other = _other_method(file, modality)
    if other is not None:
        return other
    state = file.state
    if file.origin == "state_dict" or not any(re.match(r"(backbone\.)?blocks\.", name) for name in state):
        raise BadModelError(
            f"checkpoint {file.path} holds no known encoder (its tensors are such as {join_names(state, 2)}); "
            "accepted: RETFound's files, ResNets under torchvision's names (SimCLR, SwAV), ViTs under timm's as "
            "MoCo v3 and DINO save them",
            model=file.path,
        )
    kind = "encoder"
    if file.origin == "teacher":
        kind, state = "dinov2", _dinov2_state(state)
    elif any(name.startswith(("decoder_", "mask_token")) for name in state):
        kind = "autoencoder"
    elif "head.weight" in state:
        kind = "classifier"
        if "fc_norm.weight" not in state:
            raise BadModelError(
                f"checkpoint {file.path} is a classifier on the class token (it has no fc_norm); accepted: "
                "classifiers on the mean of the patches, the official default",
                model=file.path,
            )
    return replace(file, state=state, kind=kind, method="RETFound")


def _dinov2_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The teacher's backbone under plain ViT names; its `mlp.w12` and `mlp.w3` are `mlp.fc1` and `mlp.fc2`."""
    plain = {}
    for name, tensor in state.items():
        if not name.startswith(DINOV2_LOSS_HEADS):
            name = name.removeprefix("backbone.").replace("mlp.w12.", "mlp.fc1.").replace("mlp.w3.", "mlp.fc2.")
            plain[name] = tensor
    return plain


def _other_method(file: CheckpointFile, modality: str | None) -> CheckpointFile | None:
    """The encoder of SimCLR, SwAV, MoCo v3 or DINO, or a ViT of natural images; None for RETFound's formats."""
    state, origin = file.state, file.origin
    for kind, mark in MARKS.items():
        prefixes = sorted({name.removesuffix(mark) for name in state if f".{name}".endswith(f".{mark}")})
        if not prefixes:
            continue
        prefix = _chosen(prefixes, file.path)
        named_dino = bool(re.search(DINO_NAME, file.path.name)) or prefix.endswith("backbone.")
        by_teacher = origin == "teacher" and not any(name.endswith((".ls1.gamma", "mask_token")) for name in state)
        if kind == "resnet":
            method = "SwAV" if any("prototypes" in name.split(".") for name in state) else None
        elif by_teacher:
            method = "DINO"
        elif prefix.removeprefix("module.") in ("base_encoder.", "momentum_encoder."):
            method = "MoCo v3"
        elif origin is None and named_dino:
            method = "DINO"
        elif not prefix and origin in ("model", None) and modality == NATURAL and "head.weight" not in state:
            return replace(file, kind=kind)
        else:
            continue
        return replace(file, state=_below(state, prefix, prefixes), kind=kind, method=method)
    return None


def _chosen(prefixes: list[str], path: Path) -> str:
    evaluated = [prefix for prefix in prefixes if prefix.endswith(EVALUATED)] if len(prefixes) > 1 else prefixes
    if len(evaluated) != 1:
        raise BadModelError(
            f"checkpoint {path} holds several encoders, under {', '.join(map(repr, prefixes))}; save the tensors of "
            "one of them",
            model=path,
        )
    return evaluated[0]


def _below(state: dict[str, Tensor], prefix: str, prefixes: list[str]) -> dict[str, Tensor]:
    """The tensors below a prefix without it; those that are in no head and no other encoder stay too, to be refused.

    Counters of batch norms, absent in files of old PyTorch and never used, are completed.
    """
    others = tuple(other for other in prefixes if other != prefix)
    kept = {}
    for name, tensor in state.items():
        plain = name.removeprefix(prefix)
        is_head = plain.removeprefix("module.").split(".")[0] in HEADS
        if not is_head and not (others and name.startswith(others)):
            kept[plain] = tensor
    norms = [name.removesuffix("running_var") for name in kept if name.endswith(".running_var")]
    return {f"{norm}{COUNTER}": torch.tensor(0) for norm in norms} | kept


def modality_of(name: str) -> str | None:
    """`cfp` or `oct` where a file's or repository's name tells, as in `RETFound_mae_natureCFP`; not from `doctor`."""
    found = {match.lower() for match in re.findall(MODALITY_WORD, name)}
    return found.pop() if len(found) == 1 else None


def _modality(asked: str | None, file: CheckpointFile, source: str | Path) -> str | None:
    modality = asked or modality_of(file.path.name) or modality_of(str(source))
    if modality in MODALITIES:
        return modality
    if file.method != "RETFound" and modality in (None, NATURAL):
        return None
    accepted = (*MODALITIES, NATURAL) if file.kind == "encoder" else tuple(MODALITIES)
    found = "its name does not tell" if modality is None else f"it is not {modality}"
    raise BadArgumentError(
        f"`modality` of {source} is needed ({found}); accepted: {', '.join(accepted)}"
        + (" (weights of natural images)" if NATURAL in accepted else ""),
        field="modality", value=modality, accepted=accepted,
    )  # fmt: skip


def _head_norm(asked: str, file: CheckpointFile) -> str:
    model = file.args.get("model")
    if asked != "auto":
        return asked
    if model in HEAD_NORM_OF_MODEL:
        return HEAD_NORM_OF_MODEL[model]
    raise BadArgumentError(
        f"checkpoint {file.path} does not tell which code fine-tuned it (args.model is {model!r}); pass "
        "`head_norm='single'` for the code of 2023, `head_norm='double'` for the code since February 2025",
        field="head_norm", value=asked, accepted=("single", "double"),
    )  # fmt: skip


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
        overwrite: replace the folder.

    Returns:
        The folder: a RetFound model (autoencoder, encoder or classifier), or a stock `Dinov2Model` or `ResNetModel`.

    Raises:
        BadModelError: anything that is not a complete checkpoint of a known kind.
        BadArgumentError: an option that does not fit the checkpoint, or that it needs.
    """
    require("head_norm", head_norm, ("auto", "single", "double"))
    refuse_existing(output_dir, overwrite)
    file = recognise(read_checkpoint(locate(source)), modality)
    modality = _modality(modality, file, source)
    if class_names and file.kind != "classifier":
        message = f"`class_names` were given, but {source} is a pretrained {file.kind} without a head"
        raise BadArgumentError(message, field="class_names", value=class_names)
    head_norm = _head_norm(head_norm, file) if file.kind == "classifier" else "single"
    try:
        config, rows = configure(file.kind, file.state, modality, file.args, head_norm, class_names, file.method)
        tensors = rename(file.state, rows)
    except (ArithmeticError, LookupError, TypeError) as error:  # sizes and arguments that fit nothing
        raise BadModelError(f"checkpoint {source} cannot be converted ({one_line(error)})", model=source) from error
    if file.kind == "classifier":
        # Fine-tuned files have no final norm; `AutoModel` gets one that changes nothing but scale.
        tensors["vit.layernorm.weight"] = torch.ones(config.hidden_size)
        tensors["vit.layernorm.bias"] = torch.zeros(config.hidden_size)
    config.architectures = [ARCHITECTURES[file.kind]]
    config.dtype = "float32"
    config.weights_license = file.license
    with atomic_folder(output_dir, overwrite) as folder:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        config.save_pretrained(folder)
        processor = processor_of(file.kind, modality, config.image_size)
        processor.save_pretrained(folder)
        write_converted_card(folder, Path(output_dir).name, file, source, modality, config, processor)
    return Path(output_dir)


def processor_of(kind: str, modality: str | None, image_size: int) -> RetFoundImageProcessor:
    """The preprocessing of the official code for weights of this kind and input size."""
    if kind == "classifier":
        # Its owner fine-tuned and evaluated on images as they were, the shorter side resized.
        return RetFoundImageProcessor.for_image_size(image_size, do_fundus_crop=False, keep_aspect_ratio=True)
    # RETFound feeds DINOv2 with 224 pixels, although its positions are those of 518.
    crop = modality is None or MODALITIES[modality].crop
    return RetFoundImageProcessor.for_image_size(224 if kind == "dinov2" else image_size, do_fundus_crop=crop)


def locate(source: str | Path) -> Path:
    """Local file of a source: itself, or the `.pth` of a Hub repository, fetched with the user's token.

    Raises:
        HubAccessError: a repository that cannot be fetched.
    """
    path = Path(source)
    is_hub_id = re.fullmatch(r"[\w.-]+/[\w.-]+", str(source))
    if path.exists() or path.suffix in (".pth", ".pt", ".bin") or not is_hub_id:
        return path
    from huggingface_hub import hf_hub_download

    with translate_hub_errors(str(source), "fetched"):
        return Path(hf_hub_download(str(source), f"{path.name}.pth"))


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
        metadata={"help": "kind of the training images, none for natural images; auto reads it from the name"},
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
    """Run the command `convert_checkpoint`: write the folder and print its files."""
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
