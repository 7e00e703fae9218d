"""Pretraining objectives, one file each, and the table that the command, the cards and the README read."""

from .base import Objective
from .dino import DINO
from .mae import MaskedAutoencoding
from .moco_v3 import MoCoV3
from .simclr import SimCLR
from .swav import SwAV

# name -> class. A script adds its own with `OBJECTIVES["mine"] = Mine`; nothing else has to know.
OBJECTIVES: dict[str, type[Objective]] = {
    objective.name: objective for objective in (MaskedAutoencoding, SimCLR, SwAV, DINO, MoCoV3)
}
