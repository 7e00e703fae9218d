"""The encoder that objectives without a decoder start from."""

from transformers import AutoModel, PreTrainedConfig, PreTrainedModel, ResNetConfig, ResNetModel

from ..inference.loading import is_adapter, read_config
from ..models.configuration import RetFoundConfig
from ..models.modeling import RetFoundModel
from ..models.starting_points import resolve
from ..models.starting_weights import load_network, network_config
from ..runs.errors import RetFoundError
from .model_arguments import RESNET, ModelArguments

# Encoders that become a `RetFoundModel`: the same blocks under the same names.
SAME_BLOCKS = ("retfound", "vit_mae", "vit")
IMAGE_SIZE = 224


def build_encoder(args: ModelArguments) -> PreTrainedModel:
    """The encoder in training mode, float32.

    A ViT becomes a `RetFoundModel`, whose positions do not train: those that a stock ViT learned stay as they come.

    Raises:
        RetFoundError: weights of another architecture, or without some of the encoder's.
    """
    if args.mask_ratio is not None:
        raise RetFoundError(f"--mask_ratio is not an option of --objective {args.objective}; leave it out")
    if args.model_name_or_path is None:
        return _from_preset(args).train()
    if args.config_name is not None:
        raise RetFoundError(
            f"--config_name {args.config_name} and --model_name_or_path exclude each other with --objective "
            f"{args.objective}: weights bring their sizes; give --modality for the kind of images"
        )
    name = resolve(args.model_name_or_path)
    if is_adapter(name):
        raise RetFoundError(f"--model_name_or_path {name} is a LoRA adapter; pretraining needs a whole model folder")
    stored = read_config(name)
    if stored.model_type not in (*SAME_BLOCKS, ResNetConfig.model_type):
        raise RetFoundError(
            f"--model_name_or_path {name} is a {stored.model_type} model; --objective {args.objective} goes on from a "
            "RETFound, ViT-MAE, ViT or ResNet folder"
        )
    size = getattr(stored, "image_size", None)
    if args.image_size is not None and size is not None and args.image_size != size:
        raise RetFoundError(f"--image_size {args.image_size} differs from the {size} of {name}; leave it")
    if stored.model_type == ResNetConfig.model_type:
        return _load_resnet(name, stored, args).float().train()
    modality = args.modality or getattr(stored, "modality", None)
    config = network_config(stored, modality=modality, drop_path_rate=0.0)
    model, _ = load_network(name, stored, config, classifier=False)
    return model.float().train()


def _from_preset(args: ModelArguments) -> PreTrainedModel:
    if args.config_name == RESNET:
        return ResNetModel(_with_input(ResNetConfig(), args))  # its defaults are ResNet-50
    given = {"image_size": args.image_size, "modality": args.modality}
    given = {name: value for name, value in given.items() if value is not None}
    try:
        return RetFoundModel(RetFoundConfig.from_preset(args.config_name, **given))
    except ValueError as error:
        raise RetFoundError(f"--config_name {args.config_name}: {error}") from error


def _load_resnet(name: str, stored: PreTrainedConfig, args: ModelArguments) -> PreTrainedModel:
    """A stock ResNet, without the classifier that may come with it."""
    load_network(name, stored, network_config(stored), classifier=False)  # for what it says of damaged weights
    return AutoModel.from_pretrained(name, config=_with_input(stored, args))


def _with_input(config: PreTrainedConfig, args: ModelArguments) -> PreTrainedConfig:
    """What a ResNet itself need not know of its images, but the runs with it."""
    config.image_size = args.image_size or getattr(config, "image_size", None) or IMAGE_SIZE
    config.modality = args.modality or getattr(config, "modality", None)
    return config
