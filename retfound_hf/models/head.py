"""RETFound's head: mean of the patch tokens, `fc_norm`, one linear layer; the same on every encoder."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import logging

from .losses import classification_loss

logger = logging.get_logger(__name__)


@dataclass
class RetFoundModelOutput(BaseModelOutputWithPooling):
    """What an encoder gives to the head.

    Args:
        last_hidden_state: (batch, 1 + patches, width) after the final norm: class token, then patches in raster order.
        pooler_output: (batch, width) RETFound's official feature vector, the patch mean normalised without affine.
        patch_mean: (batch, width) mean of the patch tokens, before any norm in RetFound's encoder; the head's input.
        hidden_states, attentions: as everywhere in transformers, when asked for.
    """

    patch_mean: torch.FloatTensor | None = None


class RetFoundHead(nn.Linear):
    """A linear layer that starts near zero, so that fine-tuning begins from even predictions."""


def classify(model: PreTrainedModel, outputs: RetFoundModelOutput, labels: Tensor | None) -> ImageClassifierOutput:
    """Logits, and the loss where there are labels, from what the encoder of `model` gave.

    Args:
        model: its `fc_norm` (applied twice where `config.head_norm` is "double") and its `classifier`.
        labels: see `losses.classification_loss`.
    """
    features = model.fc_norm(outputs.patch_mean)
    if getattr(model.config, "head_norm", "single") == "double":
        features = model.fc_norm(features)
    logits = _classifier_logits(model.classifier, features)
    loss = None
    if labels is not None:
        if model.training and not any(parameter.requires_grad for parameter in model.classifier.parameters()):
            logger.warning_once(
                "training with a frozen classifier; with peft, give LoraConfig "
                "modules_to_save=['fc_norm', 'classifier'] so that the head is trained and saved"
            )
        loss = classification_loss(logits, labels, model.config)
    return ImageClassifierOutput(
        loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
    )


def _classifier_logits(classifier: nn.Module, features: Tensor) -> Tensor:
    """Logits in the precision of the weights: bfloat16 tells ages above 64 apart by half years, and ties ranks."""
    device = features.device.type
    if not torch.is_autocast_enabled(device):
        return classifier(features)
    with torch.autocast(device, enabled=False):
        return classifier(features.to(next(classifier.parameters()).dtype))
