"""RETFound, the retinal foundation model (Zhou et al., Nature 2023), native to Hugging Face Transformers.

Importing the package registers its models with the Auto classes.
"""

from .errors import RetFoundError
from .models.backbones import register
from .models.configuration_retfound import PRESETS, RetFoundConfig
from .models.image_processing_retfound import RetFoundImageProcessor
from .models.modeling_retfound import RetFoundForImageClassification, RetFoundForPreTraining, RetFoundModel

__version__ = "0.1.0"
__all__ = [
    "PRESETS",
    "RetFoundConfig",
    "RetFoundError",
    "RetFoundForImageClassification",
    "RetFoundForPreTraining",
    "RetFoundImageProcessor",
    "RetFoundModel",
]

register()
