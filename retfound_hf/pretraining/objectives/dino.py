"""DINO (Caron et al. 2021): a student predicts the outputs of its own EMA, the teacher, for other crops."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from ...options import option
from .base import Recipe
from .distributed import all_reduce_mean
from .joint_embedding import (
    JointEmbedding,
    View,
    ViewOptions,
    ema_copy,
    ema_momentum,
    ema_update,
    encode,
    encode_views,
    entropy,
    local_size,
    spread,
)  # fmt: skip

STRENGTHS = (0.4, 0.4, 0.2, 0.1)
BOTTLENECK = 256
STUDENT_TEMPERATURE, CENTRE_MOMENTUM = 0.1, 0.9
# Of the teacher: from the first to the second within 30 epochs, or within three tenths of a shorter run.
TEMPERATURES, WARMUP_EPOCHS, WARMUP_SHARE = (0.04, 0.07), 30, 0.3


@dataclass(kw_only=True)
class DINOOptions(ViewOptions):
    temperature: float = option(TEMPERATURES[1], "of the teacher's softmax after its warm-up", above=0)
    teacher_momentum: float = option(0.996, "of the averaged network at the start; it ends at 1", 0, 1)
    num_prototypes: int = option(65_536, "outputs of the head", 2)
    head_width: int = option(2048, "hidden layers of the head", 1)
    local_crops: int = option(8, "small crops beside the two large ones", 0)


class DINO(JointEmbedding):
    """Cross-entropy between centred, sharpened teacher outputs of two large crops and student outputs of all others.

    65,536 outputs; teacher momentum 0.996, by half a cosine to 1; centre momentum 0.9; weight decay 0.04 to 0.4; the
    last layer rests for the first epoch; 8 small crops. The model of the run is the teacher's encoder, as published.
    Left out is the student's drop path, whose random numbers no draw could hold. The norm of all gradients together is
    clipped at 3, where the released code clips that of each parameter's at 3.
    """

    name = "dino"
    title = "DINO"
    citation = "Caron et al. 2021"
    Options = DINOOptions
    log_names: ClassVar[tuple[str, ...]] = ("embedding_spread", "teacher_entropy", "teacher_kl")
    supports_accumulation: ClassVar[bool] = True
    recipe = Recipe(
        base_learning_rate=5e-4, warmup_steps=10 / 100, weight_decay=0.04, final_weight_decay=0.4, max_grad_norm=3.0
    )

    def __init__(self, model: PreTrainedModel, side: int, options: DINOOptions | None = None):
        options = options or self.Options()
        size = model.config.image_size
        small = View(local_size(size, getattr(model.config, "patch_size", 1)), size, (0.05, 0.4), STRENGTHS)
        views = (
            View(size, size, (0.4, 1.0), STRENGTHS, blur=1.0),
            View(size, size, (0.4, 1.0), STRENGTHS, blur=0.1, solarize=0.2),
            *(small for _ in range(options.local_crops)),
        )
        super().__init__(model, side, views, options)
        outputs = options.num_prototypes
        self.temperatures = (TEMPERATURES[0], options.temperature)
        self.temperature = self.temperatures[0]
        self.momentum = options.teacher_momentum
        self.student, self.head = model, Head(self.width, options.head_width, outputs)
        self.model, self.teacher_head = ema_copy(model), ema_copy(self.head)
        self.register_buffer("centre", torch.zeros(outputs))
        # Of the teacher's outputs since the last step, which may have several forward passes.
        self.register_buffer("seen", torch.zeros(outputs), persistent=False)
        self.passes = 0

    def before_step(self, progress: float, epochs: float) -> None:
        warm = min(1.0, max(epochs / WARMUP_EPOCHS, progress / WARMUP_SHARE))
        self.temperature = self.temperatures[0] + (self.temperatures[1] - self.temperatures[0]) * warm

    def forward(self, views: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        features = encode_views(self.student, views)
        student = self.head(features)
        with torch.no_grad():
            teacher = self.teacher_head(encode(self.model, views["large"])).float()
            self.seen += teacher.mean(dim=0)
            self.passes += 1
        batch = len(teacher) // 2
        with torch.autocast(features.device.type, enabled=False):
            targets = ((teacher - self.centre) / self.temperature).softmax(dim=1)
            loss = cross_view_entropy(targets.unflatten(0, (2, batch)), student.float().unflatten(0, (-1, batch)))
        own = torch.special.entr(targets).sum(dim=1).mean()
        return loss, torch.stack([spread(features[: 2 * batch]), entropy(targets).mean(), loss.detach() - own])

    def frozen_parameters(self, epochs: float) -> Iterable[nn.Parameter]:
        return (self.head.last,) if epochs < 1 else ()

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        momentum = ema_momentum(progress, self.momentum)
        ema_update(self.model, self.student, momentum)
        ema_update(self.teacher_head, self.head, momentum)
        centre = torch.lerp(all_reduce_mean(self.seen / self.passes), self.centre, CENTRE_MOMENTUM)
        self.centre.copy_(torch.where(centre.isfinite().all(), centre, self.centre))
        self.seen.zero_()
        self.passes = 0


class Head(nn.Module):
    """Three layers to a unit vector of 256 channels, and its cosines with one unit vector per output."""

    def __init__(self, width: int, hidden: int, outputs: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, BOTTLENECK)
        )
        for layer in self.layers[::2]:
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        self.last = nn.Parameter(torch.empty(outputs, BOTTLENECK))
        nn.init.trunc_normal_(self.last, std=0.02)

    def forward(self, features: Tensor) -> Tensor:
        """(batch, width) -> (batch, outputs), within -1..1."""
        units = functional.normalize(self.layers(features), dim=1)
        return functional.linear(units, functional.normalize(self.last, dim=1))


def cross_view_entropy(targets: Tensor, outputs: Tensor) -> Tensor:
    """Mean cross-entropy of every target view and every other view of the same image.

    Args:
        targets: (2, batch, outputs), shares of the two large crops.
        outputs: (views, batch, outputs) of the student, the same two crops first.
    """
    logs = (outputs / STUDENT_TEMPERATURE).log_softmax(dim=-1)
    pairs = -torch.einsum("tbk,sbk->ts", targets, logs)
    terms = pairs.numel() - len(targets)
    return (pairs.sum() - pairs.diagonal().sum()) / (terms * targets.shape[1])
