"""A linear head on frozen features: features once, a converged fit, folded back into an ordinary classifier."""

import numpy as np
import torch
from transformers import PreTrainedModel

from ..evaluation.linear_probe import LinearProbe, fit_linear_probe


def fit_head(
    model: PreTrainedModel,
    train_features: np.ndarray,
    train_targets: np.ndarray,
    val_features: np.ndarray,
    val_targets: np.ndarray,
    seed: int = 0,
) -> LinearProbe:
    """Fit the head on what `inference.forward.head_inputs` gives and put it into `model.classifier`.

    The class weights of the model's configuration weigh the training images of the fit.
    """
    probe = fit_linear_probe(
        train_features,
        train_targets,
        val_features,
        val_targets,
        model.config.problem_type,
        class_weights=getattr(model.config, "class_weights", None),
        seed=seed,
        class_names=[model.config.id2label[index] for index in range(model.config.num_labels)],
    )
    with torch.no_grad():
        model.classifier.weight.copy_(torch.from_numpy(probe.weight))
        model.classifier.bias.copy_(torch.from_numpy(probe.bias))
    return probe


@torch.inference_mode()
def head_logits(model: PreTrainedModel, features: np.ndarray) -> np.ndarray:
    """Logits (images, num_labels) for what `inference.forward.head_inputs` gives, without the network below."""
    vectors = torch.tensor(np.asarray(features), device=model.classifier.weight.device)
    return model.classifier(vectors).float().cpu().numpy()
