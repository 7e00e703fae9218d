"""Encoders of transformers (DINOv2, DINOv3, ResNet) under RETFound's head, and the registration of all models."""

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    Dinov2Config,
    PreTrainedConfig,
)
from transformers import initialization as init
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.generic import can_return_tuple

from .configuration_retfound import RetFoundConfig
from .image_processing_retfound import RetFoundImageProcessor
from .modeling_retfound import (
    RetFoundForImageClassification,
    RetFoundForPreTraining,
    RetFoundHead,
    RetFoundModel,
    RetFoundModelOutput,
    classify,
)

STOCK_ENCODERS = ("dinov2", "dinov2_with_registers", "dinov3_vit", "resnet")
HEAD_NORM_EPS = 1e-6


class StockEncoderConfig(PreTrainedConfig):
    """The configuration of a stock encoder and, around it, of the head and its losses.

    Args:
        encoder_config: of the encoder; its `model_type` is one of `STOCK_ENCODERS`.
        drop_path_rate, label_smoothing, class_weights, target_scale, calibration_temperature, modality: as in
            `RetFoundConfig`.

    Raises:
        ValueError: an encoder whose patch tokens are not known here.
    """

    model_type = "retfound_stock"
    sub_configs = {"encoder_config": AutoConfig}

    def __init__(
        self,
        encoder_config: PreTrainedConfig | dict[str, Any] | None = None,
        drop_path_rate: float = 0.0,
        label_smoothing: float = 0.0,
        class_weights: list[float] | None = None,
        target_scale: list[float] | None = None,
        calibration_temperature: float = 1.0,
        modality: str | None = None,
        **kwargs: Any,
    ):
        if isinstance(encoder_config, dict):
            encoder_config = AutoConfig.for_model(**encoder_config)
        self.encoder_config = Dinov2Config() if encoder_config is None else encoder_config
        self.drop_path_rate = drop_path_rate
        self.label_smoothing = label_smoothing
        self.class_weights = class_weights
        self.target_scale = target_scale
        self.calibration_temperature = calibration_temperature
        self.modality = modality
        super().__init__(**kwargs)
        if self.encoder_config.model_type not in STOCK_ENCODERS:
            raise ValueError(
                f"encoder of type {self.encoder_config.model_type!r} is unknown; accepted: {', '.join(STOCK_ENCODERS)}"
            )

    @property
    def hidden_size(self) -> int:
        """Width of the tokens."""
        own = self.encoder_config
        return own.hidden_sizes[-1] if own.model_type == "resnet" else own.hidden_size

    @property
    def num_hidden_layers(self) -> int:
        """Blocks, or stages of a ResNet."""
        own = self.encoder_config
        return len(own.depths) if own.model_type == "resnet" else own.num_hidden_layers

    @property
    def image_size(self) -> int:
        """Side of the input in pixels that the weights were trained at, 224 where they do not say."""
        return getattr(self.encoder_config, "image_size", 224)

    @property
    def patch_size(self) -> int:
        """Sides of the input must be multiples of it."""
        return getattr(self.encoder_config, "patch_size", 1)

    @property
    def num_prefix_tokens(self) -> int:
        """Class and register tokens, which stand before the patches."""
        return 1 + getattr(self.encoder_config, "num_register_tokens", 0)


class StockEncoderPreTrainedModel(PreTrainedModel):
    config_class = StockEncoderConfig
    config: StockEncoderConfig
    base_model_prefix = "vit"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # the losses are plain batch means
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Of the head alone; the encoder has its own."""
        if isinstance(module, RetFoundHead):
            init.trunc_normal_(module.weight, std=2e-5)
            init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)


class StockEncoderModel(StockEncoderPreTrainedModel):
    """A stock encoder with the outputs of `RetFoundModel`.

    Its tokens are taken as it gives them, behind its final norm, for that is where its pretraining looked at them.

    Args:
        encoder: with its weights; of random ones when None.
    """

    _keys_to_ignore_on_load_unexpected = [r"^fc_norm\.", r"^classifier\."]

    def __init__(self, config: StockEncoderConfig, encoder: PreTrainedModel | None = None):
        super().__init__(config)
        self.encoder = AutoModel.from_config(config.encoder_config) if encoder is None else encoder
        blocks = [module for module in self.encoder.modules() if hasattr(module, "drop_path")]
        for index, block in enumerate(blocks):
            # The stock classes give all blocks one rate; the recipe's rises from none to the full one.
            rate = config.drop_path_rate * index / max(len(blocks) - 1, 1)
            block.drop_path = StochasticDepth(rate, mode="row") if rate else nn.Identity()
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.get_input_embeddings()

    @can_return_tuple
    def forward(
        self, pixel_values: Tensor, interpolate_pos_encoding: bool | None = None, **kwargs: Any
    ) -> RetFoundModelOutput:
        """Encode normalised images (batch, 3, height, width); `kwargs` as the stock class takes them."""
        outputs = self.encoder(pixel_values, **kwargs)
        tokens = outputs.last_hidden_state
        is_map = tokens.ndim == 4
        patches = tokens.flatten(2).transpose(1, 2) if is_map else tokens[:, self.config.num_prefix_tokens :]
        patch_mean = patches.mean(dim=1)
        return RetFoundModelOutput(
            last_hidden_state=tokens,
            pooler_output=nn.functional.layer_norm(patch_mean, patch_mean.shape[-1:], eps=HEAD_NORM_EPS),
            patch_mean=patch_mean,
            hidden_states=outputs.hidden_states,
            attentions=getattr(outputs, "attentions", None),
        )


class StockEncoderForImageClassification(StockEncoderPreTrainedModel):
    """A stock encoder under the head of `RetFoundForImageClassification`; `encoder` as in `StockEncoderModel`."""

    def __init__(self, config: StockEncoderConfig, encoder: PreTrainedModel | None = None):
        super().__init__(config)
        self.vit = StockEncoderModel(config, encoder)
        self.fc_norm = nn.LayerNorm(config.hidden_size, eps=HEAD_NORM_EPS)
        self.classifier = RetFoundHead(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **kwargs: Any) -> ImageClassifierOutput:
        """Classify normalised images; arguments and outputs as in `RetFoundForImageClassification`."""
        return classify(self, self.vit(pixel_values, **kwargs), labels)


LORA_TARGETS = {RetFoundConfig: ("query", "value"), StockEncoderConfig: ("q_proj", "v_proj")}


def register() -> None:
    """Make every Auto class, and `LoraConfig` without target modules, know our model types."""
    AutoModelForPreTraining.register(RetFoundConfig, RetFoundForPreTraining, exist_ok=True)
    for config, encoder, classifier in (
        (RetFoundConfig, RetFoundModel, RetFoundForImageClassification),
        (StockEncoderConfig, StockEncoderModel, StockEncoderForImageClassification),
    ):
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModel.register(config, encoder, exist_ok=True)
        AutoModelForImageClassification.register(config, classifier, exist_ok=True)
        AutoImageProcessor.register(
            config, image_processor_classes={"torchvision": RetFoundImageProcessor}, exist_ok=True
        )
    # Half a second, and the only moment at which a later bare `LoraConfig()` can be told where to go.
    from peft.utils import constants

    for config, targets in LORA_TARGETS.items():
        constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING[config.model_type] = list(targets)
