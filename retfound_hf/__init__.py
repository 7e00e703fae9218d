"""RETFound, the retinal foundation model (Zhou et al., Nature 2023), native to Hugging Face Transformers.

Importing the package registers its models with the Auto classes; everything else is imported when it is first used.
"""

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

from .errors import RetFoundError
from .record import __version__ as __version__

if TYPE_CHECKING:
    from .data.prepare_images import prepare_images
    from .evaluation.metrics import METRICS
    from .evaluation.predictions import Predictions
    from .explanation.explain import explain
    from .finetuning.finetune import finetune
    from .finetuning.methods import METHODS
    from .inference.embed import embed
    from .inference.evaluate import evaluate
    from .inference.predict import load_classifier
    from .inference.unlabelled import predict
    from .models.backbones import BACKBONES, RetFoundBackbone
    from .models.configuration_retfound import PRESETS, RetFoundConfig
    from .models.image_processing_retfound import RetFoundImageProcessor
    from .models.loading import STARTING_POINTS
    from .models.modeling_retfound import RetFoundForImageClassification, RetFoundForPreTraining, RetFoundModel
    from .pretraining.objectives import OBJECTIVES
    from .pretraining.pretrain import pretrain
    from .study.runner import run_study
    from .vocabulary import MODALITIES, PROBLEM_TYPES

# Name -> module that is imported when the name is first used (PEP 562).
_LAZY = {
    "BACKBONES": "models.backbones",
    "METHODS": "finetuning.methods",
    "METRICS": "evaluation.metrics",
    "MODALITIES": "vocabulary",
    "OBJECTIVES": "pretraining.objectives",
    "PRESETS": "models.configuration_retfound",
    "PROBLEM_TYPES": "vocabulary",
    "Predictions": "evaluation.predictions",
    "RetFoundBackbone": "models.backbones",
    "RetFoundConfig": "models.configuration_retfound",
    "RetFoundForImageClassification": "models.modeling_retfound",
    "RetFoundForPreTraining": "models.modeling_retfound",
    "RetFoundImageProcessor": "models.image_processing_retfound",
    "RetFoundModel": "models.modeling_retfound",
    "STARTING_POINTS": "models.loading",
    "embed": "inference.embed",
    "evaluate": "inference.evaluate",
    "explain": "explanation.explain",
    "finetune": "finetuning.finetune",
    "load_classifier": "inference.predict",
    "predict": "inference.unlabelled",
    "prepare_images": "data.prepare_images",
    "pretrain": "pretraining.pretrain",
    "run_study": "study.runner",
}
__all__ = [
    "BACKBONES",
    "METHODS",
    "METRICS",
    "MODALITIES",
    "OBJECTIVES",
    "PRESETS",
    "PROBLEM_TYPES",
    "STARTING_POINTS",
    "Predictions",
    "RetFoundBackbone",
    "RetFoundConfig",
    "RetFoundError",
    "RetFoundForImageClassification",
    "RetFoundForPreTraining",
    "RetFoundImageProcessor",
    "RetFoundModel",
    "embed",
    "evaluate",
    "explain",
    "finetune",
    "load_classifier",
    "predict",
    "prepare_images",
    "pretrain",
    "run_study",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return globals().setdefault(name, getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name))


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


# `retfound --help` answers before PyTorch is loaded, and loads no model.
_PROGRAM, *_WORDS = [*sys.argv, ""]
if os.path.basename(_PROGRAM) not in ("retfound", "retfound.exe") or _WORDS[0] not in ("", "-h", "--help"):
    importlib.import_module(".models.backbones", __name__).register()
