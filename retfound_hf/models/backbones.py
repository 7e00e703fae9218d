"""Backbones: one row per architecture in `BACKBONES`, wrapped encoders under RETFound's head, and registration."""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from PIL import Image
from torch import Tensor, nn
from torchvision.ops import StochasticDepth
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    Dinov2Config,
)
from transformers.image_processing_base import ImageProcessingMixin
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.modeling_outputs import BackboneOutput, ImageClassifierOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import cached_file
from transformers.utils.generic import can_return_tuple

from ..errors import BadArgumentError, BadModelError, one_line
from .compat import BackboneMixin, PreTrainedConfig
from .compat import initialization as init
from .configuration_retfound import HeadOptions, RetFoundConfig
from .image_processing_retfound import RetFoundImageProcessor, RetFoundImageProcessorPil
from .modeling_retfound import (
    FolderModel,
    RetFoundForImageClassification,
    RetFoundForPreTraining,
    RetFoundHead,
    RetFoundModel,
    RetFoundModelOutput,
    classify,
    feature_vector,
    requested_outputs,
)

HEAD_NORM_EPS = 1e-6
# Fields of a stock ViT configuration that describe the encoder; all else is of heads that are left out.
VIT_KEYS = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act",
    "hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range", "layer_norm_eps", "image_size",
    "patch_size", "num_channels", "qkv_bias",
)  # fmt: skip


def all_keys(stored: PreTrainedConfig) -> dict[str, Any]:
    """Settings of a configuration, without what transformers adds about the file."""
    left_out = ("model_type", "architectures", "transformers_version")
    return {key: value for key, value in stored.to_dict().items() if key not in left_out}


def _vit_keys(stored: PreTrainedConfig) -> dict[str, Any]:
    return {key: getattr(stored, key) for key in VIT_KEYS} | {"encoder_only": True}


@dataclass(frozen=True)
class Backbone:
    """Architecture whose weights every command takes.

    Attributes:
        name: `model_type` of its transformers configuration.
        title: in running text.
        retfound_options: from its configuration to the arguments of a `RetFoundConfig`, where its blocks are those of
            `RetFoundModel`; None where its own class is wrapped by `StockEncoderModel`.
        has_decoder: its folders may hold a masked autoencoder.
        pretrains: objectives without decoder may start from it.
        blocks: regular expression that finds the number of a block (or stage) in a parameter's name, as group 1.
        embeddings: regular expression that finds the parameters before the first block.
        projections: its names of the linear layers `query`, `key`, `value` and `output`, where they are others; LoRA
            adapts `query` and `value` unless told otherwise.
        prefix_tokens: number of tokens before the patches, from its configuration.
        image_mean, image_std: normalisation of folders that have no image processor.
    """

    name: str
    title: str
    retfound_options: Callable[[PreTrainedConfig], dict[str, Any]] | None = None
    has_decoder: bool = False
    pretrains: bool = False
    blocks: str = r"\b(?:layer|layers|blocks|stages)\.(\d+)\."
    embeddings: str = "embedd"
    projections: Mapping[str, str] = field(default_factory=dict)
    prefix_tokens: Callable[[PreTrainedConfig], int] = lambda config: 1 + getattr(config, "num_register_tokens", 0)
    image_mean: tuple[float, ...] = tuple(IMAGENET_DEFAULT_MEAN)
    image_std: tuple[float, ...] = tuple(IMAGENET_DEFAULT_STD)


SPLIT = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj"}
BACKBONES = {
    row.name: row
    for row in (
        Backbone("retfound", "RETFound", all_keys, has_decoder=True, pretrains=True),
        Backbone("vit_mae", "ViT-MAE", all_keys, has_decoder=True, pretrains=True),
        Backbone("vit", "ViT", _vit_keys, pretrains=True),
        Backbone("dinov2", "DINOv2", projections=SPLIT),
        Backbone("dinov2_with_registers", "DINOv2", projections=SPLIT),
        Backbone("dinov3_vit", "DINOv3", projections=SPLIT),
        Backbone("resnet", "ResNet", pretrains=True, blocks=r"\bstages\.(\d+)\.", prefix_tokens=lambda config: 0),
    )
}


def backbone_of(config: PreTrainedConfig) -> Backbone:
    """Row of a configuration, of the encoder within for a wrapped one.

    Raises:
        BadModelError: an architecture without a row.
    """
    kind = getattr(config, "encoder_config", config).model_type
    if kind not in BACKBONES:
        accepted = ", ".join(BACKBONES)
        raise BadModelError(f"model type {kind!r} is unknown; accepted: {accepted}", model=config.name_or_path)
    return BACKBONES[kind]


def accepted_models() -> str:
    """Titles of `BACKBONES`, for messages and help texts: "RETFound, ViT-MAE or ViT"."""
    *titles, last = dict.fromkeys(row.title for row in BACKBONES.values())
    return f"{', '.join(titles)} or {last}"


def parameter_depths(model: PreTrainedModel) -> dict[str, int]:
    """Depth of every parameter, for layer-wise learning rates.

    Returns:
        Name to 0 for the embeddings, i + 1 for block i, L + 1 for everything after the last of L blocks.

    Raises:
        BadModelError: the patterns of the row find no embeddings, or other blocks than the configuration counts.
    """
    row, count = backbone_of(model.config), model.config.num_hidden_layers
    names = [name for name, _ in model.named_parameters()]
    blocks = {name: int(found[1]) for name in names if (found := re.search(row.blocks, name))}
    first = {name for name in names if name not in blocks and re.search(row.embeddings, name)}
    numbers = sorted(set(blocks.values()))
    if numbers != list(range(count)) or not first:
        raise BadModelError(
            f"BACKBONES[{row.name!r}] does not fit {type(model).__name__}: `blocks` finds {numbers} "
            f"of {count} blocks and `embeddings` {len(first)} parameters, in names such as {names[0]}",
            model=model.name_or_path,
        )
    return {name: blocks[name] + 1 if name in blocks else 0 if name in first else count + 1 for name in names}


class RetFoundBackbone(BackboneMixin, RetFoundModel):
    """RETFound's encoder under the segmentation and detection heads of transformers, by `AutoBackbone`.

    Reads the folders that `RetFoundModel` reads. Images may have another size than `config.image_size`.
    """

    def __init__(self, config: RetFoundConfig):
        super().__init__(config, add_pooling_layer=not config.apply_layernorm)  # the norm trains where it is applied
        self.num_features = [config.hidden_size] * len(config.stage_names)

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> BackboneOutput:
        """Feature maps of the blocks `config.out_features`.

        Args:
            pixel_values: (batch, 3, height, width), ImageNet-normalised; both sides multiples of the patch size.
            output_attentions, output_hidden_states: as in `RetFoundModel`.

        Returns:
            `BackboneOutput` with `feature_maps`: (batch, width, rows, columns of patches) each, or the tokens
            (batch, 1 + patches, width) unless `config.reshape_hidden_states`.
        """
        asked, wants = requested_outputs(self.config, output_attentions, output_hidden_states)
        outputs = RetFoundModel.forward(
            self, pixel_values, interpolate_pos_encoding=True, output_attentions=asked, output_hidden_states=True,
            return_dict=True,
        )  # fmt: skip
        maps = [outputs.hidden_states[index] for index in self.out_indices]
        if self.config.apply_layernorm:
            maps = [self.layernorm(tokens) for tokens in maps]
        if self.config.reshape_hidden_states:
            rows = pixel_values.shape[2] // self.config.patch_size
            maps = [tokens[:, 1:].transpose(1, 2).unflatten(2, (rows, -1)).contiguous() for tokens in maps]
        states = outputs.hidden_states if wants else None
        return BackboneOutput(feature_maps=tuple(maps), hidden_states=states, attentions=outputs.attentions)


class StockEncoderConfig(HeadOptions, PreTrainedConfig):
    """Configuration of a wrapped encoder and, around it, of the head and its losses.

    Args:
        encoder_config: of the encoder; its `model_type` is a key of `BACKBONES`.
        kwargs: of `HeadOptions` and `PreTrainedConfig`.

    Raises:
        BadModelError: an encoder without a row.
    """

    model_type = "retfound_stock"
    sub_configs = {"encoder_config": AutoConfig}

    def __init__(self, encoder_config: PreTrainedConfig | dict[str, Any] | None = None, **kwargs: Any):
        if isinstance(encoder_config, dict):
            encoder_config = AutoConfig.for_model(**encoder_config)
        self.encoder_config: PreTrainedConfig = Dinov2Config() if encoder_config is None else encoder_config
        super().__init__(**kwargs)
        backbone_of(self)

    @property
    def hidden_size(self) -> int:
        """Width of the tokens."""
        own = self.encoder_config
        return own.hidden_size if hasattr(own, "hidden_size") else own.hidden_sizes[-1]

    @property
    def num_hidden_layers(self) -> int:
        """Blocks, or stages of a convolutional network."""
        own = self.encoder_config
        return own.num_hidden_layers if hasattr(own, "num_hidden_layers") else len(own.depths)

    @property
    def image_size(self) -> int:
        """Side of the input in pixels that the weights were trained at, 224 where they do not say."""
        return getattr(self.encoder_config, "image_size", 224)

    @image_size.setter
    def image_size(self, value: int) -> None:
        if value != self.image_size:
            raise BadArgumentError(
                f"`image_size={value}` is no option of a wrapped {backbone_of(self).title}, which takes images of "
                "other sizes as it is; leave it out",
                field="image_size", value=value,
            )  # fmt: skip

    @property
    def patch_size(self) -> int:
        """Sides of the input must be multiples of it."""
        return getattr(self.encoder_config, "patch_size", 1)

    @property
    def num_prefix_tokens(self) -> int:
        """Class and register tokens, which stand before the patches."""
        return backbone_of(self).prefix_tokens(self.encoder_config)


class StockEncoderPreTrainedModel(FolderModel, PreTrainedModel):
    config_class = StockEncoderConfig
    config: StockEncoderConfig
    base_model_prefix = "vit"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # the losses are plain batch means
    _fixed_parameters = ("mask_token",)  # of objectives that hide patches
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @classmethod
    def from_base(cls, base: str, *args: Any, config: PreTrainedConfig, **kwargs: Any) -> Any:
        if AutoConfig.from_pretrained(base, trust_remote_code=False).model_type == config.model_type:
            return super().from_base(base, *args, config=config, **kwargs)
        encoder, info = AutoModel.from_pretrained(base, *args, **{"trust_remote_code": False, **kwargs})
        return cls(config, encoder).to(encoder.dtype).eval(), info

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise the head alone; the encoder has its own initialisation."""
        if isinstance(module, RetFoundHead):
            init.trunc_normal_(module.weight, std=2e-5)
            init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)


class StockEncoderModel(StockEncoderPreTrainedModel):
    """Encoder of transformers with the outputs of `RetFoundModel`.

    Its tokens are taken after its own final norm, where its pretraining read them.

    Args:
        config: with the encoder's own configuration.
        encoder: with its weights; random ones when None.
        add_pooling_layer: give the feature vector `pooler_output`.
    """

    _keys_to_ignore_on_load_unexpected = [r"^fc_norm\.", r"^classifier\."]

    def __init__(
        self, config: StockEncoderConfig, encoder: PreTrainedModel | None = None, add_pooling_layer: bool = True
    ):
        super().__init__(config)
        self.add_pooling_layer = add_pooling_layer
        self.encoder = AutoModel.from_config(config.encoder_config) if encoder is None else encoder
        blocks = [module for module in self.encoder.modules() if hasattr(module, "drop_path")]
        for index, block in enumerate(blocks):
            # The stock classes give all blocks one rate; the recipe's rises from none to the full one.
            rate = config.drop_path_rate * index / max(len(blocks) - 1, 1)
            block.drop_path = StochasticDepth(rate, mode="row") if rate else nn.Identity()
        self.freeze_fixed_parameters()
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.get_input_embeddings()

    @can_return_tuple
    def forward(
        self, pixel_values: Tensor, interpolate_pos_encoding: bool | None = None, **kwargs: Any
    ) -> RetFoundModelOutput:
        """Encode normalised images (batch, 3, height, width); `kwargs` as the wrapped class takes them."""
        outputs = self.encoder(pixel_values, return_dict=True, **kwargs)
        tokens = outputs.last_hidden_state
        is_map = tokens.ndim == 4
        patches = tokens.flatten(2).transpose(1, 2) if is_map else tokens[:, self.config.num_prefix_tokens :]
        patch_mean = patches.mean(dim=1)
        return RetFoundModelOutput(
            last_hidden_state=tokens,
            pooler_output=feature_vector(patch_mean, HEAD_NORM_EPS) if self.add_pooling_layer else None,
            patch_mean=patch_mean,
            hidden_states=outputs.hidden_states,
            attentions=getattr(outputs, "attentions", None),
        )


class StockEncoderForImageClassification(StockEncoderPreTrainedModel):
    """Wrapped encoder under the head of `RetFoundForImageClassification`; `encoder` as in `StockEncoderModel`."""

    def __init__(self, config: StockEncoderConfig, encoder: PreTrainedModel | None = None):
        super().__init__(config)
        self.vit = StockEncoderModel(config, encoder)
        self.fc_norm = nn.LayerNorm(config.hidden_size, eps=HEAD_NORM_EPS)
        self.classifier = RetFoundHead(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **kwargs: Any) -> ImageClassifierOutput:
        """Classify normalised images; arguments and outputs as in `RetFoundForImageClassification`."""
        return classify(self, self.vit(pixel_values, return_dict=True, **kwargs), labels)


# Configuration -> Auto class -> model: what `register` registers, and what the `auto_map` of a published folder names.
AUTO_CLASSES: dict[type[PreTrainedConfig], dict[Any, type[PreTrainedModel]]] = {
    RetFoundConfig: {
        AutoModel: RetFoundModel,
        AutoBackbone: RetFoundBackbone,
        AutoModelForPreTraining: RetFoundForPreTraining,
        AutoModelForImageClassification: RetFoundForImageClassification,
    },
    StockEncoderConfig: {
        AutoModel: StockEncoderModel,
        AutoModelForImageClassification: StockEncoderForImageClassification,
    },
}


def register() -> None:
    """Make every Auto class know the model types of this package."""
    for config, classes in AUTO_CLASSES.items():
        AutoConfig.register(config.model_type, config, exist_ok=True)
        for auto_class, model_class in classes.items():
            auto_class.register(config, model_class, exist_ok=True)
        processors = {"torchvision": RetFoundImageProcessor, "pil": RetFoundImageProcessorPil}
        AutoImageProcessor.register(config, image_processor_classes=processors, exist_ok=True)


PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")


def stored_processor(name_or_path: str) -> Any:
    """Image processor of a folder or Hub repository, tried on a blank image; None where there is no file of one.

    Raises:
        BadModelError: a file that cannot be read, names no processor, or whose settings take no image.
    """
    try:
        if not _has_processor(name_or_path):
            return None
        settings, _ = ImageProcessingMixin.get_image_processor_dict(name_or_path)
        stored = AutoImageProcessor.from_pretrained(name_or_path, trust_remote_code=False)
        pixels = torch.as_tensor(stored(Image.new("RGB", (16, 16)), return_tensors="pt")["pixel_values"])
        if not {"image_processor_type", "feature_extractor_type", "image_mean"} & settings.keys():
            raise BadModelError("it names no image processor")
        if not pixels.isfinite().all():
            raise BadModelError("it turns an image into values that are not finite")
    except Exception as error:  # files can be wrong in every way
        raise BadModelError(
            f"preprocessor_config.json of model {name_or_path} cannot be used: {one_line(error)}; restore it from "
            "where the model came from",
            model=name_or_path,
        ) from error
    return stored


def _has_processor(name_or_path: str) -> bool:
    if os.path.isdir(name_or_path):
        return any(os.path.lexists(os.path.join(name_or_path, name)) for name in PROCESSOR_FILES)
    options = {"_raise_exceptions_for_missing_entries": False}
    try:
        if any(cached_file(name_or_path, name, **options) is not None for name in PROCESSOR_FILES):
            return True
    except OSError:
        return False  # there is no such model; reading its configuration says so better
    if try_to_load_from_cache(name_or_path, PROCESSOR_FILES[0]) is None:
        raise BadModelError("it is not in the cache, and the Hub cannot be asked whether there is one")
    return False
