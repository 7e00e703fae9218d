"""RETFound, the retinal foundation model (Zhou et al., Nature 2023), native to Hugging Face Transformers.

Importing the package tells the Auto classes of its models; everything else, torch and transformers included, is
imported when it is first used.
"""

import importlib
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
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


# Names that transformers asks for, by the tables below.
_ASKED_FOR = {
    "RetFoundImageProcessorPil": "models.image_processing_retfound",
    "StockEncoderConfig": "models.backbones",
}
# Model type -> its configuration, and the layers that LoRA adapts where no others are named.
_MODEL_TYPES = {
    "retfound": ("RetFoundConfig", ["query", "value"]),
    "retfound_stock": ("StockEncoderConfig", ["q_proj", "v_proj"]),
}


def __getattr__(name: str) -> Any:
    module = _LAZY.get(name) or _ASKED_FOR.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return globals().setdefault(name, getattr(importlib.import_module(f".{module}", __name__), name))


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _name_models(tables: ModuleType) -> None:
    """Name the model types where transformers names its own, which it imports by name when one is asked for."""
    processors = {"torchvision": "RetFoundImageProcessor", "pil": "RetFoundImageProcessorPil"}
    for model_type, (config, _) in _MODEL_TYPES.items():
        sys.modules[f"transformers.models.{model_type}"] = sys.modules[__name__]
        tables.CONFIG_MAPPING_NAMES[model_type] = config
        tables.IMAGE_PROCESSOR_MAPPING_NAMES[model_type] = processors


def _name_lora_targets(constants: ModuleType) -> None:
    """Tell a `LoraConfig` without target modules where to go."""
    targets = {model_type: names for model_type, (_, names) in _MODEL_TYPES.items()}
    constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.update(targets)


# Tables of other libraries that this package adds to once they are imported: to import them here would take seconds.
_TABLES = {"transformers.models.auto.auto_mappings": _name_models, "peft.utils.constants": _name_lora_targets}


class _TableLoader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        _TABLES[module.__name__](module)


class _TableFinder(MetaPathFinder):
    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name in _TABLES else None
        if spec is not None and spec.origin is not None:
            spec.loader = _TableLoader(name, spec.origin)
        return spec


sys.meta_path.insert(0, _TableFinder())
for _table in _TABLES.keys() & sys.modules.keys():
    _TABLES[_table](sys.modules[_table])
if "transformers.models.auto.configuration_auto" in sys.modules:  # which has copied the table
    importlib.import_module(".models", __name__)
