"""SwAV (Caron et al. 2020): predict from one crop the prototypes that another crop of the image is assigned to."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from ...options import option
from .base import Recipe
from .distributed import all_gather
from .joint_embedding import JointEmbedding, View, ViewOptions, encode_views, entropy, local_size, mlp, spread

STRENGTHS = (0.8, 0.8, 0.8, 0.2)
CHANNELS = 128
EPSILON, ITERATIONS = 0.05, 3
FINEST = 1e-30  # assignments stop changing long before it, and scores divided by it are still float32

# Published for a ResNet-50 and 4,096 images a step.
RESNET_RECIPE = Recipe(base_learning_rate=0.3, warmup_steps=10 / 800, weight_decay=1e-6, optim="lars")


@dataclass(kw_only=True)
class SwAVOptions(ViewOptions):
    temperature: float = option(0.1, "of the softmax", above=0)
    num_prototypes: int = option(3000, "prototypes", 2)
    head_width: int = option(2048, "hidden layer of the head", 1)
    local_crops: int = option(6, "small crops beside the two large ones", 0)
    sinkhorn_epsilon: float = option(
        EPSILON, "smaller makes assignments sharper, if the loss stays at log(num_prototypes)", above=0
    )


class SwAV(JointEmbedding):
    """Swapped assignments of two large crops, predicted from all other crops, at temperature 0.1.

    3,000 prototypes, kept at unit length and at rest for the first epoch; 6 small crops; assignments by three
    Sinkhorn iterations over the images of all processes. On a ResNet the recipe is the published one, with LARS. On a
    ViT it is that of Caron et al. (2021), who trained SwAV on it: AdamW as for DINO.
    """

    name = "swav"
    title = "SwAV"
    citation = "Caron et al. 2020"
    Options = SwAVOptions
    log_names: ClassVar[tuple[str, ...]] = ("embedding_spread", "assignment_entropy")
    recipe = Recipe(
        base_learning_rate=5e-4, warmup_steps=10 / 100, weight_decay=0.04, final_weight_decay=0.4, max_grad_norm=3.0
    )

    def __init__(self, model: PreTrainedModel, side: int, options: SwAVOptions | None = None):
        options = options or self.Options()
        size = model.config.image_size
        small = View(local_size(size, getattr(model.config, "patch_size", 1)), size, (0.05, 0.14), STRENGTHS)
        views = (
            *(View(size, size, (0.14, 1.0), STRENGTHS) for _ in range(2)),
            *(small for _ in range(options.local_crops)),
        )
        super().__init__(model, side, views, options)
        if model.config.model_type == "resnet":
            self.recipe = RESNET_RECIPE
        self.temperature = options.temperature
        self.epsilon = options.sinkhorn_epsilon
        self.projector = mlp(self.width, options.head_width, CHANNELS)
        prototypes = torch.empty(options.num_prototypes, CHANNELS)
        self.prototypes = nn.Parameter(functional.normalize(nn.init.normal_(prototypes), dim=1))

    def forward(self, views: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        projected = self.projector(encode_views(self.model, views))
        batch = len(views["large"]) // 2
        with torch.autocast(projected.device.type, enabled=False):
            units = functional.normalize(projected.float(), dim=1)
            scores = functional.linear(units, self.prototypes).unflatten(0, (-1, batch))
            with torch.no_grad():
                codes = torch.stack([sinkhorn(view, self.epsilon) for view in scores[:2].detach()])
            loss = swapped_prediction(codes, scores, self.temperature)
        shares = (scores[:2].detach() / self.temperature).softmax(dim=-1).mean(dim=(0, 1))
        return loss, torch.stack([spread(projected[: 2 * batch]), entropy(shares)])

    def frozen_parameters(self, epochs: float) -> Iterable[nn.Parameter]:
        return (self.prototypes,) if epochs < 1 else ()

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        self.prototypes.copy_(functional.normalize(self.prototypes, dim=1))


def swapped_prediction(codes: Tensor, scores: Tensor, temperature: float) -> Tensor:
    """Mean cross-entropy of the assignments of each large crop and the predictions from all other crops.

    Args:
        codes: (2, batch, prototypes), shares of the two large crops.
        scores: (views, batch, prototypes), cosines with the prototypes, the same two crops first.
    """
    logs = (scores / temperature).log_softmax(dim=-1)
    pairs = -torch.einsum("tbk,sbk->ts", codes, logs)
    terms = pairs.numel() - len(codes)
    return (pairs.sum() - pairs.diagonal().sum()) / (terms * codes.shape[1])


def sinkhorn(scores: Tensor, epsilon: float = EPSILON) -> Tensor:
    """Assignments close to the scores that use all prototypes alike, over the images of all processes.

    Args:
        scores: (batch, prototypes) of this process, cosines.
        epsilon: above 0; the smaller, the closer to the scores and the sharper.

    Returns:
        (batch, prototypes), rows sum to 1.
    """
    # In logarithms: the shares of a prototype that is far from all images may all be below the smallest float32.
    logs = scores / max(epsilon, FINEST)
    for _ in range(ITERATIONS):
        logs = logs - all_gather(logs.logsumexp(dim=0, keepdim=True)).logsumexp(dim=0)
        logs = logs.log_softmax(dim=1)
    return logs.exp()
