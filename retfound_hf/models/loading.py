"""Loading of any accepted weights: starting points by name, classifiers, encoders, autoencoders, adapters."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    PreTrainedConfig,
    PreTrainedModel,
)

from ..errors import BadModelError, nearest, one_line
from .adapters import HEAD, adapter_base, describe_adapted, errors_of_loading, has_config, head_size, merge_adapter
from .backbones import (
    AUTO_CLASSES,
    BACKBONES,
    StockEncoderConfig,
    accepted_models,
    all_keys,
    backbone_of,
    stored_processor,
)
from .configuration_retfound import PACKAGED, UNCALIBRATED, RetFoundConfig, is_adapter
from .image_processing_retfound import RetFoundImageProcessor
from .key_tables import check_sizes
from .modeling_retfound import RetFoundForPreTraining, RetFoundPreTrainedModel

OFFICIAL_LICENSE = "cc-by-nc-4.0"  # of the official weights, and of whatever is derived from them
OFFICIAL_ORGANISATION = "YukunZhou"


@dataclass(frozen=True)
class StartingPoint:
    """Weights to start from.

    Attributes:
        name: as the commands take it.
        title: the weights in words.
        hub_id: where they are published, None where nobody has published them.
        license: of the weights; None where they have none of their own.
        make: the command that makes the folder, for weights that no `from_pretrained` reads as they are published.
        file: checkpoint in the repository, for those that `retfound fetch` converts.
        modality: of the images that they were trained on; None where it is not known.
        folder: that holds them in this package, for those that come with it.
    """

    name: str
    title: str
    hub_id: str | None = None
    license: str | None = None
    make: str | None = None
    file: str | None = None
    modality: str | None = None
    folder: str | None = None


def _official(name: str, repository: str, title: str, modality: str | None = None) -> StartingPoint:
    """Row of RETFound's own weights, one `.pth` file in a gated repository."""
    hub_id, make = f"{OFFICIAL_ORGANISATION}/{repository}", f"retfound fetch {name}"
    return StartingPoint(name, title, hub_id, OFFICIAL_LICENSE, make, f"{repository}.pth", modality)


# The first five are the table 'Comparison models' of Zhou et al. 2023, Methods.
STARTING_POINTS = {
    row.name: row
    for row in (
        StartingPoint(
            "sl-imagenet", "ViT-L trained with labels on ImageNet-21k", "google/vit-large-patch16-224-in21k",
            "apache-2.0",
        ),
        StartingPoint(
            "ssl-imagenet", "ViT-L masked autoencoder on ImageNet-1k", "facebook/vit-mae-large", "apache-2.0"
        ),
        StartingPoint(
            "ssl-retinal", "ViT-L masked autoencoder on retinal images from random weights",
            make="retfound pretrain --config_name retfound-cfp --train_data SHARDS --output_dir ssl-retinal",
        ),
        _official("retfound-cfp", "RETFound_mae_natureCFP", "RETFound for colour fundus photographs", "cfp"),
        _official("retfound-oct", "RETFound_mae_natureOCT", "RETFound for OCT B-scans", "oct"),
        _official("retfound-meh", "RETFound_mae_meh", "RETFound trained on images of Moorfields Eye Hospital"),
        _official("retfound-shanghai", "RETFound_mae_shanghai", "RETFound trained on images from Shanghai"),
        _official("retfound-dinov2-meh", "RETFound_dinov2_meh", "DINOv2 trained on images of Moorfields Eye Hospital"),
        _official("retfound-dinov2-shanghai", "RETFound_dinov2_shanghai", "DINOv2 trained on images from Shanghai"),
        StartingPoint(
            "retfound-mini", "small masked autoencoder pretrained on synthetic photographs, for trying things out",
            license="apache-2.0", modality="cfp", folder=str(PACKAGED / "retfound-mini"),
        ),
    )
}  # fmt: skip


def accepted_weights() -> str:
    """Models that a command takes, for help texts."""
    return f"{', '.join(STARTING_POINTS)}, or a folder or Hub id of a {accepted_models()} model"


def resolve(name_or_path: str) -> str:
    """Folder or Hub id that a name stands for; other names than those of starting points are returned unchanged.

    A folder of that name in the working directory always wins.

    Raises:
        BadModelError: a starting point whose folder has to be made first, or a file.
    """
    path = Path(name_or_path)
    if path.is_dir():
        return name_or_path
    start = find_starting_point(name_or_path)
    if path.is_file():
        wrong = f"is a {_instead(path)}"
    elif name_or_path == "retfound":
        wrong = "is ambiguous: give retfound-cfp or retfound-oct, or a folder"
    elif start is None and name_or_path.startswith(f"{OFFICIAL_ORGANISATION}/"):
        wrong = f"is an official checkpoint; convert it once with `retfound convert_checkpoint {name_or_path} FOLDER`"
    elif start is None:
        return name_or_path
    elif start.make is None:
        return start.folder or str(start.hub_id)
    else:
        where = "not published" if start.hub_id is None else f"published as {start.hub_id}, which is gated"
        wrong = (
            f"({start.title}; {where}) has no folder here; make it with `{start.make}`, on another machine where this "
            "one has no network, or give the folder that has it"
        )
    raise BadModelError(f"model {name_or_path} {wrong}", model=name_or_path)


def _instead(file: Path) -> str:
    """Kind of a file that was given in place of a model folder, and what to give instead."""
    if (file.parent / "config.json").is_file():
        return f"file of a model folder; give the folder, {file.parent}"
    return (
        f"checkpoint file, not a model folder; convert it with `retfound convert_checkpoint {file} FOLDER` "
        "(scripts/convert_checkpoint.py), and give that folder"
    )


def find_starting_point(name_or_path: str, folders: bool = True) -> StartingPoint | None:
    """Row of a name or a Hub id; None for other names, and for a folder of that name unless `folders` is false."""
    if folders and Path(name_or_path).exists():
        return None
    by_id = {start.hub_id: start for start in STARTING_POINTS.values() if start.hub_id}
    return STARTING_POINTS.get(name_or_path) or by_id.get(name_or_path)


def how_to_bring(name_or_path: str) -> str:
    """Advice on weights that are not here, where the Hub cannot be reached; empty for other paths."""
    if name_or_path.startswith("retfound-"):
        advice = "`retfound fetch NAME` makes the folders of the official weights, `retfound fetch --help` names them"
        return (name_or_path not in STARTING_POINTS and nearest(name_or_path, STARTING_POINTS)) or f"; {advice}"
    if Path(name_or_path).is_absolute() or name_or_path.count("/") != 1:
        return nearest(name_or_path, STARTING_POINTS)
    start = find_starting_point(name_or_path)
    folder = start.name if start else name_or_path.split("/")[1]
    meant = f" (that is {start.name}: {start.title})" if start else ""
    return (
        f"; where there is a network, run `hf download {name_or_path} --local-dir {folder}`{meant}, then bring the "
        f"folder {folder} here and give its path"
    )


# The only tensors that an encoder or a classifier may leave out, by their names without the encoder's prefix.
LEFT_OUT = (*HEAD, "decoder.", "pooler.", "embeddings.mask_token", "mask_token")
# transformers 5 stores the decoder of the stock class under another name than 4.x and this package.
STOCK_NAMES = {r"^decoder\.decoder_encoder\.layer\.": "decoder.decoder_layers."}


def read_config(name_or_path: str) -> PreTrainedConfig:
    """Configuration of a model folder, adapter, Hub id or starting point.

    Raises:
        BadModelError: there is none, or it cannot be read.
    """
    name_or_path = resolve(name_or_path)
    if is_adapter(name_or_path) and not has_config(name_or_path):
        return describe_adapted(read_config(adapter_base(name_or_path)), name_or_path)
    if Path(name_or_path).is_dir() and not (Path(name_or_path) / "config.json").is_file():
        raise BadModelError(
            f"model folder {name_or_path} has no config.json; expected a folder written by convert_checkpoint, "
            "pretrain or finetune",
            model=name_or_path,
        )
    try:
        settings, _ = PreTrainedConfig.get_config_dict(name_or_path)
        check_sizes(settings, name_or_path)  # before a list is made with an entry for each layer
        return AutoConfig.from_pretrained(name_or_path, trust_remote_code=False)
    except BadModelError:
        raise
    except Exception as error:  # files can be wrong in every way
        reason = f"cannot be read: {one_line(error)}"
        if not Path(name_or_path).exists():
            reason = (
                f"is neither a model folder here nor available from the Hub or its cache{how_to_bring(name_or_path)} "
                f"({one_line(error)})"
            )
        raise BadModelError(f"model {name_or_path} {reason}", model=name_or_path) from error


def read_weights(model_class: Any, name_or_path: str, **options: Any) -> tuple[PreTrainedModel, list[str], list[str]]:
    """Model with the weights of a folder or Hub id, in evaluation mode.

    Args:
        model_class: class or Auto class with `from_pretrained`.
        name_or_path: folder or Hub id.
        options: of `from_pretrained`.

    Returns:
        The model, the names of the tensors that it lacks (or that have another shape), and of those without a use.

    Raises:
        BadModelError: weights that cannot be read.
    """
    with errors_of_loading(name_or_path):
        options |= {"output_loading_info": True, "trust_remote_code": False}
        model, info = model_class.from_pretrained(name_or_path, **options)
    missing = {*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])}
    return model.eval(), sorted(missing), sorted(info["unexpected_keys"])


def network_config(stored: PreTrainedConfig, **options: Any) -> RetFoundConfig | StockEncoderConfig:
    """Configuration of this package's network for weights with the configuration `stored`.

    Args:
        stored: of any backbone, or of a folder of this package.
        options: labels, `drop_path_rate` and the like, on top.

    Raises:
        BadModelError: a model type without a row in `BACKBONES`.
    """
    row = backbone_of(stored)
    if row.retfound_options is not None:
        return RetFoundConfig(**{**row.retfound_options(stored), **options})
    if stored.model_type == StockEncoderConfig.model_type:
        return StockEncoderConfig(**{**all_keys(stored), **options})
    encoder = copy.deepcopy(stored)
    encoder.name_or_path = ""  # a path of this machine, which a nested configuration would be saved with
    return StockEncoderConfig(encoder_config=encoder, **options)


def load_network(
    name_or_path: str, stored: PreTrainedConfig, config: PreTrainedConfig, classifier: bool
) -> tuple[PreTrainedModel, bool]:
    """Network of `config`, with the weights of a folder or Hub id.

    Args:
        name_or_path: folder or Hub id.
        stored: configuration beside the weights.
        config: as `network_config` makes it.
        classifier: with a head; otherwise the encoder alone.

    Returns:
        The network, and whether its head came with it whole.

    Raises:
        BadModelError: weights that cannot be read, that lack a part of the encoder, or hold tensors without a use.
    """
    network_class = AUTO_CLASSES[type(config)][AutoModelForImageClassification if classifier else AutoModel]
    if isinstance(config, StockEncoderConfig) and not isinstance(stored, StockEncoderConfig):
        encoder, missing, unexpected = read_weights(AutoModel, name_or_path)
        network = network_class(config, encoder).eval()
        network.name_or_path = str(name_or_path)  # where an adapter finds its base
        missing += [name for name in network.state_dict() if name.startswith(HEAD)]
    else:
        network, missing, unexpected = read_weights(
            network_class, name_or_path, config=config, ignore_mismatched_sizes=True
        )
    lacking = [name for name in missing if not name.startswith((*HEAD, "pooler."))]
    if lacking:
        raise BadModelError(
            f"model {name_or_path} lacks {len(lacking)} tensors of its encoder, such as {lacking[0]}; it would start "
            "from random weights",
            model=name_or_path,
        )
    _refuse_unknown(unexpected, name_or_path)
    return network, not missing


def _refuse_unknown(unexpected: Sequence[str], name_or_path: str) -> None:
    """Refuse tensors that the configured network does not use, such as those of further layers."""
    unknown = [name for name in unexpected if not name.removeprefix("vit.").startswith(LEFT_OUT)]
    if unknown:
        raise BadModelError(
            f"model {name_or_path} has {len(unknown)} unexpected tensors, such as {unknown[0]}", model=name_or_path
        )


def load_classifier(name_or_path: str) -> PreTrainedModel:
    """Fine-tuned classifier, in evaluation mode; an adapter comes merged into the base that it names.

    Raises:
        BadModelError: a folder without a trained head, or an adapter whose base is gone.
    """
    name_or_path = resolve(name_or_path)
    config = read_config(name_or_path)
    if is_adapter(name_or_path):
        base = adapter_base(name_or_path)
        if type(config) in AUTO_CLASSES:
            kept = {name: getattr(config, name) for name in UNCALIBRATED}
            model, has_head = load_network(base, read_config(base), config, classifier=True)
            # The head is missing from the base, and the adapter's is as its configuration says.
            model._head_changed = False
            model.config.update(kept)
        else:
            options = {"config": config, "ignore_mismatched_sizes": True}
            model, missing, _ = read_weights(AutoModelForImageClassification, resolve(base), **options)
            has_head = not missing
        if not has_head and head_size(name_or_path) is None:
            raise BadModelError(
                f"adapter {name_or_path} brings no trained head, and its base {base} has none; train it with "
                "`modules_to_save=['fc_norm', 'classifier']` in its LoraConfig",
                model=name_or_path,
            )
        merged = merge_adapter(model, name_or_path)
        return fit_input(merged, load_processor(name_or_path))
    model, missing, unexpected = read_weights(AutoModelForImageClassification, name_or_path, config=config)
    if missing:
        raise BadModelError(
            f"model {name_or_path} has no trained classifier (it lacks {missing[0]}); fine-tune it first with the "
            "command finetune",
            model=name_or_path,
        )
    _refuse_unknown(unexpected, name_or_path)
    return fit_input(model, load_processor(name_or_path))


def load_encoder(name_or_path: str) -> PreTrainedModel:
    """Encoder of any model folder, in evaluation mode; of an adapter, with the adapter merged in.

    Whatever the weights, its `pooler_output` is RETFound's feature vector: the mean of the patch tokens, normalised.
    """
    name_or_path = resolve(name_or_path)
    if is_adapter(name_or_path):
        model = load_classifier(name_or_path)
        if type(model.config) not in AUTO_CLASSES:
            raise BadModelError(
                f"adapter {name_or_path} was trained on a {type(model).__name__} of transformers, whose features are "
                "not RETFound's; adapt a model that was loaded from a folder of this package",
                model=name_or_path,
            )
        return model.base_model
    stored = read_config(name_or_path)
    model, _ = load_network(name_or_path, stored, network_config(stored), classifier=False)
    return fit_input(model, load_processor(name_or_path))


def fit_input(model: PreTrainedModel, processor: RetFoundImageProcessor) -> PreTrainedModel:
    """Interpolate a RETFound model's positions where `processor` gives images of another size than the model's.

    Older folders of fine-tuning hold the configuration of the pretraining beside a processor of another size.
    """
    side = processor.size.height
    if isinstance(model, RetFoundPreTrainedModel) and side != model.config.image_size:
        model.resize_positions(side)
    return model


def check_has_decoder(name_or_path: str) -> PreTrainedConfig:
    """Configuration of a folder that holds a masked autoencoder.

    Raises:
        BadModelError: an adapter, another architecture, or an encoder alone.
    """
    config = None if is_adapter(name_or_path) else read_config(name_or_path)
    if config is None:
        found = "is a LoRA adapter, which has no decoder"
    elif config.model_type not in BACKBONES or not BACKBONES[config.model_type].has_decoder:
        found = f"is a {config.model_type} model, which has no decoder"
    elif getattr(config, "encoder_only", False):
        found = "holds an encoder without its decoder, as classifiers and some of the official files do"
    else:
        return config
    raise BadModelError(
        f"model {name_or_path} {found}; masked autoencoding needs a folder of pretraining, RETFound's or ViT-MAE's, "
        "or a converted checkpoint that has its decoder",
        model=name_or_path,
    )


def load_autoencoder(name_or_path: str, config: RetFoundConfig | None = None) -> PreTrainedModel:
    """Masked autoencoder with its trained decoder, in evaluation mode.

    Args:
        name_or_path: folder, Hub id or starting point.
        config: makes a `RetFoundForPreTraining` of the weights, whichever class wrote them; without one the model is
            the folder's own, RETFound's or the stock ViT-MAE.

    Raises:
        BadModelError: a folder without decoder: an encoder, a classifier, an adapter, another architecture.
    """
    name_or_path = resolve(name_or_path)
    check_has_decoder(name_or_path)
    if config is None:
        model, missing, _ = read_weights(AutoModelForPreTraining, name_or_path)
    else:
        model, missing, _ = read_weights(RetFoundForPreTraining, name_or_path, config=config, key_mapping=STOCK_NAMES)
    if missing:
        raise BadModelError(
            f"model {name_or_path} lacks {len(missing)} tensors, such as {missing[0]}; masked autoencoding needs an "
            "autoencoder with its decoder",
            model=name_or_path,
        )
    return model


def load_processor(
    name_or_path: str, image_size: int | None = None, crop: bool | None = None
) -> RetFoundImageProcessor:
    """Preprocessing of a model folder as a `RetFoundImageProcessor`; the default where the folder has no file of it.

    Args:
        name_or_path: folder, Hub id or starting point.
        image_size: another input size of the network than the folder's.
        crop: crop to the field of view, whatever the folder says.

    Raises:
        BadModelError: a file that cannot be read, or that describes another processor than the model's.
    """
    stored = stored_processor(name_or_path := resolve(name_or_path))
    if stored is None:
        if is_adapter(name_or_path):
            base, own = adapter_base(name_or_path), getattr(read_config(name_or_path), "image_size", None)
            own = None if own == getattr(read_config(base), "image_size", None) else own
            return load_processor(base, image_size or own, crop)
        config = read_config(name_or_path)
        row = BACKBONES.get(getattr(config, "encoder_config", config).model_type, BACKBONES["retfound"])
        normalisation = {"image_mean": list(row.image_mean), "image_std": list(row.image_std)}
        stored = RetFoundImageProcessor.for_image_size(getattr(config, "image_size", 224), **normalisation)
    elif not isinstance(stored, RetFoundImageProcessor) and type(read_config(name_or_path)) in AUTO_CLASSES:
        raise BadModelError(
            f"preprocessor_config.json of model {name_or_path} is for a {type(stored).__name__}, not for the model's "
            f"{RetFoundImageProcessor.__name__}; restore the file", model=name_or_path,
        )  # fmt: skip
    processor = stored
    if image_size is not None or not isinstance(stored, RetFoundImageProcessor):
        # Of another processor only the normalisation belongs to the weights.
        own = dict(getattr(stored, "crop_size", None) or getattr(stored, "size", None) or {})
        processor = RetFoundImageProcessor.for_image_size(
            image_size or own.get("height") or own.get("shortest_edge") or 224,
            image_mean=list(stored.image_mean), image_std=list(stored.image_std),
            do_fundus_crop=getattr(stored, "do_fundus_crop", True),
        )  # fmt: skip
    if crop is not None:
        processor.do_fundus_crop = crop
    return processor
