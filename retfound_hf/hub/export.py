"""Export of a model folder to timm's state dict or an ONNX graph, and the command `export`."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, ViTConfig
from transformers.image_utils import PILImageResampling

from ..errors import BadModelError, RetFoundError, missing_extra, require
from ..files import atomic_folder, write_json
from ..models.cards import describe_preprocessing, license_of, write_card
from ..models.configuration_retfound import is_adapter
from ..models.image_processing_retfound import RetFoundImageProcessor
from ..models.key_tables import encoder_rows, pair
from ..models.loading import load_classifier, load_encoder, load_processor, read_config, resolve
from ..options import parse_arguments
from ..record import write_run_record
from ..vocabulary import MULTI_LABEL, SINGLE_LABEL, problem_type_of

TOLERANCE = 1e-4  # of what the export gives, against the model that it was made from


def export(folder: str, output_dir: str | Path, format: str, overwrite: bool = False) -> Path:
    """Write a model in another format, after its outputs were compared with those of the model itself.

    Args:
        folder: model or adapter folder or Hub id; an adapter is merged into its base.
        output_dir: the folder to make: `model.safetensors`, `config.json` and `timm.json` as timm reads them, or
            `model.onnx` with `config.json` and `preprocessor_config.json`; and `preprocessing.json`, the steps from an
            image to the network's input, and `README.md`, with what the format cannot carry of them.
        format: `timm` or `onnx`.
        overwrite: replace the folder.

    Raises:
        BadModelError: a model that the format cannot express.
        MissingPackageError: the extra is not installed.
        RetFoundError: outputs that differ.
    """
    require("format", format, ("timm", "onnx"))
    model, is_classifier = load_for_export(folder)
    processor = load_processor(resolve(folder))
    with atomic_folder(output_dir, overwrite) as partial:
        if format == "timm":
            write_timm(model, is_classifier, processor, partial)
        else:
            write_onnx(model, is_classifier, processor, partial)
        steps = preprocessing(processor, model.config, is_classifier)
        write_json(partial / "preprocessing.json", steps)
        write_card(
            partial,
            "export",
            {"library_name": format, "license": license_of(folder)},
            folder_name=Path(output_dir).name,
            format=format,
            output=steps["output"],
            preprocessing=describe_preprocessing(processor, stock=False),
            has_crop=processor.do_fundus_crop,
        )
    return Path(output_dir)


def load_for_export(folder: str) -> tuple[PreTrainedModel, bool]:
    """Classifier of a fine-tuned folder or adapter, or else the encoder; and whether it is a classifier."""
    name = resolve(folder)
    architectures = read_config(name).architectures or []
    is_classifier = is_adapter(name) or any("ForImageClassification" in found for found in architectures)
    return (load_classifier(name) if is_classifier else load_encoder(name)).float().eval(), is_classifier


def output_of(model: PreTrainedModel, is_classifier: bool, pixels: Tensor) -> Tensor:
    """Logits of a classifier (batch, labels), or the feature vector of an encoder (batch, width)."""
    outputs = model(pixels)
    return outputs.logits if is_classifier else outputs.pooler_output


def example(batch: int, size: int) -> Tensor:
    """Seeded noise in place of images (batch, 3, size, size)."""
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


def check_equal(expected: Tensor, found: Tensor, format: str) -> float:
    """Largest difference of two outputs; RetFoundError where it is above `TOLERANCE`."""
    difference = (expected - found).abs().max().item()
    if not difference <= TOLERANCE:
        raise RetFoundError(
            f"the {format} export differs from the model by {difference:.2g}, above {TOLERANCE}; nothing is written"
        )
    return difference


def preprocessing(processor: RetFoundImageProcessor, config: Any, is_classifier: bool) -> dict[str, Any]:
    """Steps from an image to the network's input, and the meaning of its output, for those who serve it."""
    steps: list[dict[str, Any]] = [{"step": "to_rgb", "bits": 8, "exif_orientation": True}]
    resizing = {"interpolation": interpolation(processor), "antialias": True, "dtype": "uint8"}
    done: list[tuple[bool, dict[str, Any]]] = [
        (processor.do_fundus_crop,
         {"step": "crop_to_field_of_view", "pad": "black, to a square", "if_none_found": "unchanged"}),
        (processor.do_resize, {"step": "resize", **processor.resized_size, **resizing}),
        (processor.do_center_crop, {"step": "center_crop", **dict(processor.size)}),
        (processor.do_rescale, {"step": "scale", "factor": processor.rescale_factor}),
        (processor.do_normalize,
         {"step": "normalize", "mean": list(processor.image_mean), "std": list(processor.image_std)}),
    ]  # fmt: skip
    steps += [step for is_done, step in done if is_done]
    found: dict[str, Any] = {
        "input": {"name": "pixel_values", "layout": "batch, channel, row, column"},
        "steps": steps,
    }
    if not is_classifier:
        return found | {"output": {"name": "features", "meaning": "mean of the patch tokens, normalised"}}
    problem = problem_type_of(config)
    activation = {SINGLE_LABEL: "softmax", MULTI_LABEL: "sigmoid"}.get(problem)
    output = {"name": "logits", "labels": labels_of(config), "problem_type": problem, "activation": activation}
    return found | {"output": output}


def interpolation(processor: RetFoundImageProcessor) -> str:
    """Name of the filter that resizes: bicubic, unless the folder has another."""
    return PILImageResampling(processor.resample).name.lower()


def labels_of(config: Any) -> list[str]:
    """Names of a classifier's classes, in the order of its outputs."""
    return [config.id2label[index] for index in range(config.num_labels)]


CHECKED_BATCHES = (1, 3)
VIT_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "patch_size")
OPSET = 18


class OneOutput(nn.Module):
    """Pixels in, one tensor out."""

    def __init__(self, model: PreTrainedModel, is_classifier: bool):
        super().__init__()
        self.model, self.is_classifier = model, is_classifier

    def forward(self, pixel_values: Tensor) -> Tensor:
        return output_of(self.model, self.is_classifier, pixel_values)


def write_onnx(model: PreTrainedModel, is_classifier: bool, processor: RetFoundImageProcessor, folder: Path) -> float:
    """Write `model.onnx` with input `pixel_values` and output `logits` or `features`, any batch size.

    Its metadata hold `preprocessing.json`. Beside it lie `preprocessor_config.json`, and `config.json` in the terms of
    a plain ViT, so that optimum finds the classes without this package.

    Returns:
        The largest difference between onnxruntime and PyTorch, over several batch sizes.

    Raises:
        RetFoundError: the extra is not installed, or the outputs differ.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  PyTorch's exporter asks for it
    except ImportError as error:
        raise missing_extra("onnxruntime with onnxscript", "onnx") from error
    path = folder / "model.onnx"
    output = "logits" if is_classifier else "features"
    network = OneOutput(model, is_classifier).eval()
    size = processor.size.height
    with torch.no_grad():
        program = torch.onnx.export(
            network,
            (example(2, size),),
            input_names=["pixel_values"],
            output_names=[output],
            dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch", min=1)}},
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # with dynamo
    program.model.metadata_props["preprocessing"] = json.dumps(preprocessing(processor, model.config, is_classifier))
    program.save(path, external_data=True)  # a file may hold 2 GB at most, and ViT-L comes near
    processor.save_pretrained(folder)
    labels = dict(enumerate(labels_of(model.config))) if is_classifier else {}
    ViTConfig(
        **{name: getattr(model.config, name) for name in VIT_SIZES if hasattr(model.config, name)}
        | {"image_size": size},
        architectures=["ViTForImageClassification" if is_classifier else "ViTModel"],
        problem_type=model.config.problem_type,
        **{"id2label": labels, "label2id": {label: index for index, label in labels.items()}} if labels else {},
    ).save_pretrained(folder)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    differences = []
    for batch in CHECKED_BATCHES:
        pixels = example(batch, size)
        (found,) = session.run([output], {"pixel_values": pixels.numpy()})
        with torch.no_grad():
            differences.append(check_equal(network(pixels), torch.from_numpy(found), "ONNX"))
    return max(differences)


TIMM_NAME = "vit_large_patch16_224"


def write_timm(model: PreTrainedModel, is_classifier: bool, processor: RetFoundImageProcessor, folder: Path) -> float:
    """Write a folder that timm loads by `local-dir:`: `model.safetensors` and `config.json`.

    `timm.json` has the arguments of the `create_model` that loads the weights strictly.

    Returns:
        The largest difference of the two models' outputs.

    Raises:
        RetFoundError: another architecture, or a classifier that applies its norm twice.
    """
    check_expressible(model, is_classifier)
    try:
        import timm
    except ImportError as error:
        raise missing_extra("timm", "timm") from error
    arguments = timm_arguments(model, is_classifier)
    arguments["pretrained_cfg"] = timm_data(model, is_classifier, processor)
    other = timm.create_model(**arguments).eval()
    other.load_state_dict(timm_state(model, is_classifier), strict=True)
    pixels = example(2, model.config.image_size)
    with torch.no_grad():
        difference = check_equal(output_of(model, is_classifier, pixels), other(pixels), "timm")
    own = {
        name: value for name, value in arguments.items() if name not in ("model_name", "num_classes", "pretrained_cfg")
    }
    names = {"label_names": labels_of(model.config)} if is_classifier else {}
    timm.models.save_for_hf(other, folder, model_config={**names, "model_args": own}, safe_serialization=True)
    write_json(folder / "timm.json", {"create_model": arguments, "largest_difference": difference})
    return difference


def timm_data(model: PreTrainedModel, is_classifier: bool, processor: RetFoundImageProcessor) -> dict[str, Any]:
    """timm's `pretrained_cfg`, from which `timm.data.resolve_model_data_config` makes the transform of the input.

    It lacks the crop to the field of view, for which timm has no name. With an odd margin (such as 48 in 55 pixels)
    timm cuts the smaller half on the other side, which moves the input by one pixel.
    """
    height, width, resized = processor.size.height, processor.size.width, processor.resized_size
    share = height / resized.get("shortest_edge", resized.get("height", height)) if processor.do_resize else 1.0
    # timm rounds the resized side down, which a share of the rounded side can miss by one.
    share = share if math.floor(height / share) == round(height / share) else height / (round(height / share) + 0.25)
    # timm scales by 1/255, and standardises always.
    scale = 255 * processor.rescale_factor if processor.do_rescale else 255
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else ([0.0] * 3, [1.0] * 3)
    return {
        "architecture": TIMM_NAME,
        "input_size": [3, height, width],
        "interpolation": interpolation(processor),
        "crop_pct": share,
        "crop_mode": "center" if processor.keep_aspect_ratio else "squash",
        "mean": [value / scale for value in mean],
        "std": [value / scale for value in std],
        "num_classes": model.config.num_labels if is_classifier else 0,
        **({"label_names": labels_of(model.config)} if is_classifier else {}),
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }


def check_expressible(model: PreTrainedModel, is_classifier: bool) -> None:
    if model.config.model_type != "retfound":
        raise BadModelError(
            f"`format='timm'` takes RETFound models, and this is {model.config.model_type}; use `format='onnx'`",
            model=model.name_or_path,
        )
    if is_classifier and model.config.head_norm == "double":
        raise BadModelError(
            "this classifier applies its norm twice (head_norm: double, the official code since 2025), which timm's "
            "ViT does not; use `format='onnx'`",
            model=model.name_or_path,
        )


def timm_state(model: PreTrainedModel, is_classifier: bool) -> dict[str, Tensor]:
    """The weights under timm's names.

    An encoder gets an `fc_norm` that changes nothing but scale, as the official feature vector wants it.
    """
    config, tensors = model.config, model.state_dict()
    positions = (config.image_size // config.patch_size) ** 2 + 1
    prefix = "" if is_classifier else "vit."
    rows = list(
        encoder_rows(
            config.hidden_size, config.intermediate_size, config.num_hidden_layers, config.patch_size, positions
        )
    )
    if is_classifier:
        rows += [*pair("fc_norm", "fc_norm", config.hidden_size)]
        rows += [*pair("head", "classifier", config.num_labels, config.hidden_size)]
    # Fused tensors such as q, k, v are joined in the order of their row.
    state = {
        row.source: torch.cat([tensors[name.removeprefix(prefix)] for name in row.targets]).contiguous()
        for row in rows
    }
    if not is_classifier:
        state |= {"fc_norm.weight": torch.ones(config.hidden_size), "fc_norm.bias": torch.zeros(config.hidden_size)}
    return state


def timm_arguments(model: PreTrainedModel, is_classifier: bool) -> dict[str, Any]:
    """Arguments of `timm.create_model`; sizes are named only where they are not those of ViT-L."""
    config = model.config
    usual = {"img_size": 224, "patch_size": 16, "embed_dim": 1024, "depth": 24, "num_heads": 16, "mlp_ratio": 4}
    own = {
        "img_size": config.image_size,
        "patch_size": config.patch_size,
        "embed_dim": config.hidden_size,
        "depth": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "mlp_ratio": config.intermediate_size / config.hidden_size,
    }
    return {
        "model_name": TIMM_NAME,
        "num_classes": config.num_labels if is_classifier else 0,
        "global_pool": "avg",
        **{name: value for name, value in own.items() if value != usual[name]},
    }


@dataclass
class ExportArguments:
    folder: str = field(metadata={"positional": True, "help": "model or adapter folder, or Hub id"})
    format: Literal["timm", "onnx"] = field(metadata={"help": "a state dict for timm's ViT-L, or an ONNX graph"})
    output_dir: str | None = field(default=None, metadata={"help": "folder to make; default: FOLDER-FORMAT"})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "replace the output folder"})


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command `export`: write the folder and print its files."""
    (arguments,) = parse_arguments(
        ExportArguments, argv=argv, description="A model folder in the format of timm or ONNX, outputs compared."
    )
    output_dir = arguments.output_dir or f"{arguments.folder.rstrip('/').split('/')[-1]}-{arguments.format}"
    folder = export(arguments.folder, output_dir, arguments.format, arguments.overwrite_output_dir)
    write_run_record(folder, "export", arguments)
    print(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
