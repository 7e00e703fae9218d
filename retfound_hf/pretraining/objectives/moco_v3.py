"""MoCo-v3 (Chen et al. 2021): predict the momentum encoder's vector of the other view."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from ...options import option
from .base import Recipe
from .distributed import all_gather, process_index
from .joint_embedding import JointEmbedding, View, ViewOptions, ema_copy, ema_momentum, ema_update, encode, mlp, spread

OUTPUT = 256
STRENGTHS = (0.4, 0.4, 0.2, 0.1)


@dataclass(kw_only=True)
class MoCoV3Options(ViewOptions):
    temperature: float = option(0.2, "of the softmax", above=0)
    teacher_momentum: float = option(0.99, "of the averaged network at the start; it ends at 1", 0, 1)
    head_width: int = option(4096, "hidden layers of the heads", 1)


class MoCoV3(JointEmbedding):
    """InfoNCE both ways between the predictions of one view and the momentum encoder's vectors of the other.

    Temperature 0.2; momentum 0.99, by half a cosine to 1; negatives are the images of all processes. The patch
    projection of a ViT keeps its initial weights, without which training is not stable (section 4 there). Of the
    batch norms of a head the last has no weights, as in the released code for a ViT.
    """

    name = "moco_v3"
    title = "MoCo v3"
    citation = "Chen et al. 2021"
    Options = MoCoV3Options
    log_names: ClassVar[tuple[str, ...]] = ("embedding_spread",)
    recipe = Recipe(base_learning_rate=1.5e-4, warmup_steps=40 / 300, weight_decay=0.1)

    def __init__(self, model: PreTrainedModel, side: int, options: MoCoV3Options | None = None):
        options = options or self.Options()
        size = model.config.image_size
        views = (
            View(size, size, (0.08, 1.0), STRENGTHS, blur=1.0),
            View(size, size, (0.08, 1.0), STRENGTHS, blur=0.1, solarize=0.2),
        )
        super().__init__(model, side, views, options)
        self.temperature = options.temperature
        self.momentum = options.teacher_momentum
        if hasattr(model, "embeddings") and hasattr(model.embeddings, "patch_embeddings"):
            model.embeddings.patch_embeddings.requires_grad_(False)
        hidden = options.head_width
        self.projector = mlp(self.width, hidden, hidden, OUTPUT, last_norm="plain")
        self.predictor = mlp(OUTPUT, hidden, OUTPUT, last_norm="plain")
        self.average = ema_copy(nn.ModuleDict({"model": self.model, "projector": self.projector}))

    def forward(self, views: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Batch norms see one view at a time, as published."""
        first, second = views["large"].chunk(2)
        predicted = [self.predictor(self.projector(encode(self.model, view))) for view in (first, second)]
        with torch.no_grad():
            seen = [self.average["projector"](encode(self.average["model"], view)) for view in (first, second)]
        loss = info_nce(predicted[0], seen[1], self.temperature) + info_nce(predicted[1], seen[0], self.temperature)
        return loss, spread(predicted[0])[None]

    def after_step(self, progress: float) -> None:
        network = nn.ModuleDict({"model": self.model, "projector": self.projector})
        ema_update(self.average, network, ema_momentum(progress, self.momentum))


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
        similarities = queries @ all_gather(keys).T / temperature
        own = process_index() * len(queries) + torch.arange(len(queries), device=queries.device)
        return 2 * temperature * functional.cross_entropy(similarities, own)
