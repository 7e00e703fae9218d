"""The entries of RetFound in the registries of transformers and peft."""

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

LORA_TARGETS = ("query", "value")


def register() -> None:
    """Make every Auto class, and `LoraConfig` without target modules, know the model type `retfound`."""
    AutoConfig.register(RetFoundConfig.model_type, RetFoundConfig, exist_ok=True)
    AutoModel.register(RetFoundConfig, RetFoundModel, exist_ok=True)
    AutoModelForPreTraining.register(RetFoundConfig, RetFoundForPreTraining, exist_ok=True)
    AutoModelForImageClassification.register(RetFoundConfig, RetFoundForImageClassification, exist_ok=True)
    AutoImageProcessor.register(
        RetFoundConfig, image_processor_classes={"torchvision": RetFoundImageProcessor}, exist_ok=True
    )
    # Half a second, and the only moment at which a later bare `LoraConfig()` can be told where to go.
    from peft.utils import constants

    constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING[RetFoundConfig.model_type] = list(LORA_TARGETS)
