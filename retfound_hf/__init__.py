"""RETFound, the retinal foundation model (Zhou et al., Nature 2023), native to Hugging Face Transformers.

Importing the package registers its models with the Auto classes.
"""

from .models.configuration import PRESETS, RetFoundConfig
from .models.image_processing import RetFoundImageProcessor
from .models.modeling import RetFoundForImageClassification, RetFoundForPreTraining, RetFoundModel
from .models.registration import register
from .runs.errors import RetFoundError

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
