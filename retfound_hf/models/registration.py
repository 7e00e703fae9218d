"""The entries of our models in the registries of transformers and peft."""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
)

from .configuration import RetFoundConfig
from .image_processing import RetFoundImageProcessor
from .modeling import RetFoundForImageClassification, RetFoundForPreTraining, RetFoundModel
from .stock import StockEncoderConfig, StockEncoderForImageClassification, StockEncoderModel

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
