"""MoCo-v3 (Chen et al. 2021): predict what a slowly moving average of the network sees in the other view."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from .base import ObjectiveArguments, Recipe
from .distributed import gather, process_index
from .joint_embedding import JointEmbedding, View, follow, follower, mlp, momentum_at, spread, vectors

OUTPUT = 256
STRENGTHS = (0.4, 0.4, 0.2, 0.1)


class MoCoV3(JointEmbedding):
    """InfoNCE both ways between the predictions of one view and the momentum encoder's vectors of the other.

    Temperature 0.2; momentum 0.99, by half a cosine to 1; negatives are the images of all processes. The patch
    projection of a ViT keeps its initial weights, without which training is not stable (section 4 there). Of the
    batch norms of a head the last has no weights, as in the released code for a ViT.
    """

    log_names: ClassVar[tuple[str, ...]] = ("embedding_spread",)
    option_names: ClassVar[tuple[str, ...]] = ("temperature", "teacher_momentum", "head_width", "views")
    recipe = Recipe(base_learning_rate=1.5e-4, warmup_steps=40 / 300, weight_decay=0.1)

    def __init__(self, model: PreTrainedModel, side: int, options: ObjectiveArguments | None = None):
        options = options or ObjectiveArguments()
        size = model.config.image_size
        views = (
            View(size, size, (0.08, 1.0), STRENGTHS, blur=1.0),
            View(size, size, (0.08, 1.0), STRENGTHS, blur=0.1, solarize=0.2),
        )
        super().__init__(model, side, views, options)
        self.temperature = options.temperature or 0.2
        self.momentum = 0.99 if options.teacher_momentum is None else options.teacher_momentum
        if hasattr(model, "embeddings") and hasattr(model.embeddings, "patch_embeddings"):
            model.embeddings.patch_embeddings.requires_grad_(False)
        hidden = options.head_width or 4096
        self.projector = mlp(self.width, hidden, hidden, OUTPUT, last_norm="plain")
        self.predictor = mlp(OUTPUT, hidden, OUTPUT, last_norm="plain")
        self.average = follower(nn.ModuleDict({"model": self.model, "projector": self.projector}))

    def forward(self, views: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Batch norms see one view at a time, as published."""
        first, second = views["large"].chunk(2)
        predicted = [self.predictor(self.projector(vectors(self.model, view))) for view in (first, second)]
        with torch.no_grad():
            seen = [self.average["projector"](vectors(self.average["model"], view)) for view in (first, second)]
        loss = info_nce(predicted[0], seen[1], self.temperature) + info_nce(predicted[1], seen[0], self.temperature)
        return loss, spread(predicted[0])[None]

    def after_step(self, progress: float) -> None:
        network = nn.ModuleDict({"model": self.model, "projector": self.projector})
        follow(self.average, network, momentum_at(progress, self.momentum))


def info_nce(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of finding each query's own key among the keys of all processes, in float32.

    Args:
        queries: (batch, channels) of this process's images, of any length.
        keys: (batch, channels) of the same images, without gradients.

    Returns:
        The mean over this process's queries, times 2 x temperature as in the released code.
    """
    with torch.autocast(queries.device.type, enabled=False):
        queries, keys = functional.normalize(queries.float(), dim=1), functional.normalize(keys.float(), dim=1)
        similarities = queries @ gather(keys).T / temperature
        own = process_index() * len(queries) + torch.arange(len(queries), device=queries.device)
        return 2 * temperature * functional.cross_entropy(similarities, own)
