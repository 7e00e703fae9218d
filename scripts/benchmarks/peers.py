"""Peers of the benchmarks: what people would use instead of this package, as plain loops, and how both are timed.

Each peer names the public code whose way it follows; none of that code is needed here. (a) is the released code of MAE
and RETFound, (b) stock transformers classes, (c) torchvision's `ImageFolder`, (d) timm. Settings that a published
recipe leaves to the machine (fused optimisers, attention kernels) are the defaults of the installed versions.
"""

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from timm.layers import PatchEmbed
from timm.models.vision_transformer import Block
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder
from transformers import ViTConfig, ViTForImageClassification, ViTMAEConfig, ViTMAEForPreTraining

from retfound_hf.files import write_json
from retfound_hf.models.patches import sincos_positions
from retfound_hf.record import git_revision, versions

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MAE_BETAS, WEIGHT_DECAY = (0.9, 0.95), 0.05
Step = Callable[[], Any]


def wait(device: str | torch.device) -> None:
    """Wait until the device has done what it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def alternate(
    ways: Mapping[str, Step], rounds: int, warmup: int = 1, device: str | torch.device = "cpu"
) -> dict[str, dict[str, float]]:
    """Seconds of each way, by turns: what else the machine does then falls on all of them alike.

    Returns:
        For each way `seconds`, the median of `rounds` runs; `cpu_seconds`, that of processor time (of all threads,
        which other programs do not lengthen); `low` and `high`, the fastest and the slowest.
    """
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for number in range(warmup + rounds):
        for name, way in ways.items():
            wait(device)
            began, cpu = time.perf_counter(), time.process_time()
            way()
            wait(device)
            if number >= warmup:
                spent[name].append((time.perf_counter() - began, time.process_time() - cpu))
    return {
        name: {
            "seconds": statistics.median(wall for wall, _ in runs),
            "cpu_seconds": statistics.median(cpu for _, cpu in runs),
            "low": min(wall for wall, _ in runs),
            "high": max(wall for wall, _ in runs),
        }
        for name, runs in spent.items()
    }


def ratio(times: Mapping[str, Mapping[str, float]], peer: str, ours: str, of: str = "seconds") -> float:
    """Speed of this package, in multiples of the peer's."""
    return round(times[peer][of] / times[ours][of], 3)


def both(times: Mapping[str, Mapping[str, float]], peer: str, ours: str) -> dict[str, float]:
    """`ratio` by the clock, and by processor time, which is the one to go by on a busy machine with one thread."""
    return {"wall": ratio(times, peer, ours), "processor": ratio(times, peer, ours, of="cpu_seconds")}


def write_record(path: str | Path, what: str, threads: int | None = None, **facts: Any) -> None:
    """Write a result with machine, threads, versions and revision."""
    on_gpu = torch.cuda.is_available()
    cores = f"{platform.machine()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"
    record = {
        "what": what,
        "machine": torch.cuda.get_device_name(0) if on_gpu else cores,
        "threads": threads or torch.get_num_threads(),
        "load_of_the_machine": round(os.getloadavg()[0], 1),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "versions": {**versions(), "timm": timm.__version__},
        "git_revision": git_revision(),
        **facts,
    }
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_json(path, record)


def sizes_of(config: Any) -> dict[str, Any]:
    """The numbers that make an encoder, by the names of stock configurations."""
    names = (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "image_size",
        "patch_size",
    )
    return {name: getattr(config, name) for name in names}


class OfficialAutoencoder(nn.Module):
    """Masked autoencoder of timm's blocks, computed in the order of facebookresearch/mae `models_mae.py`.

    All patches are projected before some are dropped, all are predicted, and the loss is masked at the end.

    Args:
        config: with the sizes of a `RetFoundConfig`.
    """

    def __init__(self, config: Any):
        super().__init__()
        self.kept = int((config.image_size // config.patch_size) ** 2 * (1 - config.mask_ratio))
        norm = partial(nn.LayerNorm, eps=1e-6)
        width, narrow, grid = config.hidden_size, config.decoder_hidden_size, config.image_size // config.patch_size
        self.patch_size = config.patch_size
        self.embed = PatchEmbed(config.image_size, config.patch_size, 3, width)
        self.token, self.mask_token = nn.Parameter(torch.zeros(1, 1, width)), nn.Parameter(torch.zeros(1, 1, narrow))
        self.positions = nn.Parameter(sincos_positions(width, grid), requires_grad=False)
        self.narrow_positions = nn.Parameter(sincos_positions(narrow, grid), requires_grad=False)
        self.blocks = nn.Sequential(*(
            Block(width, config.num_attention_heads, config.intermediate_size / width, qkv_bias=True, norm_layer=norm)
            for _ in range(config.num_hidden_layers)
        ))  # fmt: skip
        heads, share = config.decoder_num_attention_heads, config.decoder_intermediate_size / narrow
        self.decoder_blocks = nn.Sequential(*(
            Block(narrow, heads, share, qkv_bias=True, norm_layer=norm)
            for _ in range(config.decoder_num_hidden_layers)
        ))  # fmt: skip
        self.norm, self.decoder_norm = norm(width), norm(narrow)
        self.narrow = nn.Linear(width, narrow)
        self.predict = nn.Linear(narrow, config.patch_size**2 * 3)

    def forward(self, pixels: Tensor) -> Tensor:
        """Loss of normalised images (batch, 3, size, size)."""
        tokens = self.embed(pixels) + self.positions[:, 1:]
        count, patches, width = tokens.shape
        shuffle = torch.rand(count, patches, device=pixels.device).argsort(dim=1)
        restore = shuffle.argsort(dim=1)
        tokens = tokens.gather(1, shuffle[:, : self.kept, None].repeat(1, 1, width))
        mask = torch.ones(count, patches, device=pixels.device)
        mask[:, : self.kept] = 0
        mask = mask.gather(1, restore)
        first = (self.token + self.positions[:, :1]).expand(count, -1, -1)
        tokens = self.narrow(self.norm(self.blocks(torch.cat([first, tokens], dim=1))))
        hidden = self.mask_token.repeat(count, patches - self.kept, 1)
        every = torch.cat([tokens[:, 1:], hidden], dim=1)
        every = every.gather(1, restore[..., None].repeat(1, 1, every.shape[2]))
        tokens = torch.cat([tokens[:, :1], every], dim=1) + self.narrow_positions
        predicted = self.predict(self.decoder_norm(self.decoder_blocks(tokens)))[:, 1:]
        side, grid = self.patch_size, pixels.shape[2] // self.patch_size
        target = pixels.reshape(count, 3, grid, side, grid, side)
        target = torch.einsum("nchpwq->nhwpqc", target).reshape(count, patches, -1)
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6) ** 0.5
        loss = ((predicted - target) ** 2).mean(-1)
        return (loss * mask).sum() / mask.sum()


def official_step(
    network: nn.Module, loss_of: Callable[[], Tensor], groups: list[dict[str, Any]], **adam: Any
) -> Step:
    """An optimiser step as facebookresearch/mae takes it: `engine_pretrain.train_one_epoch` and `util/misc.py`.

    fp16 autocast and a GradScaler on a GPU (float32 on a CPU), the norm of all gradients, AdamW as torch makes it by
    default, the loss asked for on the host and a wait for the device at every step. RETFound's
    `engine_finetune.train_one_epoch` does the same.

    Args:
        loss_of: gives the loss of a batch.
        groups: of parameters.
        adam: options of AdamW.
    """
    device = next(network.parameters()).device
    optimizer = torch.optim.AdamW(groups, **adam)
    scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda")
    trained = [parameter for group in groups for parameter in group["params"]]

    def step() -> float:
        with torch.autocast(device.type, torch.float16, enabled=device.type == "cuda"):
            loss = loss_of()
        found = loss.item()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
        torch.stack([gradient.norm() for gradient in gradients]).norm()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        wait(device)
        return found

    return step


def official_pretraining(config: Any, pixels: Tensor, rate: float = 1e-4) -> Step:
    """A step of the released pretraining on a batch of normalised images (facebookresearch/mae `main_pretrain.py`)."""
    network = OfficialAutoencoder(config).to(pixels.device).train()
    groups = param_groups_weight_decay(network, WEIGHT_DECAY)
    return official_step(network, lambda: network(pixels), groups, lr=rate, betas=MAE_BETAS)


def timm_encoder(config: Any, **options: Any) -> nn.Module:
    """timm's ViT of these sizes, the mean of the patch tokens as its features (RETFound `models_vit.py`)."""
    return timm.models.vision_transformer.VisionTransformer(
        img_size=config.image_size, patch_size=config.patch_size, embed_dim=config.hidden_size,
        depth=config.num_hidden_layers, num_heads=config.num_attention_heads,
        mlp_ratio=config.intermediate_size / config.hidden_size, global_pool="avg",
        norm_layer=partial(nn.LayerNorm, eps=1e-6), **{"num_classes": 0, **options},
    )  # fmt: skip


def official_finetuning(config: Any, pixels: Tensor, labels: Tensor, classes: int = 5) -> Step:
    """A step of the released fine-tuning (RETFound_MAE `main_finetune.py`): drop path 0.2, layer decay 0.65.

    The loss has label smoothing 0.1; what a batch costs before it is on the device is not in it.
    """
    network = timm_encoder(config, num_classes=classes, drop_path_rate=0.2).to(pixels.device).train()
    groups = param_groups_layer_decay(network, WEIGHT_DECAY, layer_decay=0.65)
    for group in groups:
        group["lr"] = 3e-4 * group.pop("lr_scale")

    def loss() -> Tensor:
        return nn.functional.cross_entropy(network(pixels), labels, label_smoothing=0.1)

    return official_step(network, loss, groups, lr=3e-4)


def official_finetuning_transform(size: int = 224) -> Callable:
    """Augmentation of the released fine-tuning, image by image with Pillow (RETFound_MAE `util/datasets.py`)."""
    return timm.data.create_transform(
        size, is_training=True, auto_augment="rand-m9-mstd0.5-inc1", interpolation="bicubic", re_prob=0.25,
        re_mode="pixel", re_count=1, color_jitter=None, mean=MEAN, std=STD,
    )  # fmt: skip


def stock_autoencoder(config: Any) -> ViTMAEForPreTraining:
    """`ViTMAEForPreTraining` of these sizes, with SDPA and with the positions that it leaves at zero."""
    decoder = {name: value for name, value in config.to_dict().items() if name.startswith("decoder_")}
    return ViTMAEForPreTraining(ViTMAEConfig(
        **sizes_of(config), **decoder, mask_ratio=config.mask_ratio, norm_pix_loss=True, layer_norm_eps=1e-6,
        attn_implementation="sdpa",
    ))  # fmt: skip


def stock_classifier(config: Any, classes: int = 5) -> ViTForImageClassification:
    """`ViTForImageClassification` of these sizes, with SDPA."""
    return ViTForImageClassification(ViTConfig(**sizes_of(config), num_labels=classes, attn_implementation="sdpa"))


def trainer_step(model: nn.Module, inputs: Mapping[str, Tensor], output_dir: str | Path, **options: Any) -> Step:
    """A step of transformers' Trainer, as its examples run it (pytorch/image-pretraining `run_mae.py`), bf16 on a GPU.

    Its `training_step` with what its inner loop does around it: clipping at 1, the fused AdamW, the schedule. The
    batch is on the device already, and nothing is logged or saved.

    Args:
        output_dir: that Trainer wants; it stays empty.
        options: of `TrainingArguments`, such as `bf16=False, fp16=True`.
    """
    from transformers import Trainer, TrainingArguments

    on_gpu = torch.cuda.is_available()
    arguments = TrainingArguments(
        str(output_dir), use_cpu=not on_gpu, learning_rate=1e-4, weight_decay=WEIGHT_DECAY, report_to="none",
        disable_tqdm=True, max_steps=1000, **{"bf16": on_gpu, **options},
    )  # fmt: skip
    trainer = Trainer(model, arguments, data_collator=lambda rows: rows)
    trainer.create_optimizer_and_scheduler(1000)
    trainer.current_gradient_accumulation_steps = 1  # set by the loop around `training_step`
    network, optimizer = trainer.accelerator.prepare(trainer.model, trainer.optimizer)
    parameters = list(network.parameters())

    def step() -> Tensor:
        loss = trainer.training_step(network, dict(inputs))
        trainer.accelerator.clip_grad_norm_(parameters, arguments.max_grad_norm)
        optimizer.step()
        trainer.lr_scheduler.step()
        optimizer.zero_grad()
        return loss

    return step


def official_augmentation(size: int = 224) -> Callable:
    """Augmentation of the released pretraining (facebookresearch/mae `main_pretrain.py`): Pillow, image by image."""
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(size, scale=(0.2, 1.0), interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )


def image_folder_batches(
    folder: str | Path, batch: int, workers: int = 0, size: int = 224, transform: Callable | None = None
) -> Iterator[Tensor]:
    """Batches of an endless `ImageFolder` in random order (facebookresearch/mae `main_pretrain.py`)."""
    images = ImageFolder(str(folder), transform or official_augmentation(size))
    loader = DataLoader(images, batch, shuffle=True, num_workers=workers, drop_last=True, pin_memory=False)
    while True:
        for pixels, _ in loader:
            yield pixels


@torch.inference_mode()
def timm_features(network: nn.Module, batches: Sequence[Tensor], dtype: torch.dtype | None = None) -> np.ndarray:
    """Features of batches under autocast of `dtype` (timm `inference.py`); None computes in float32.

    Args:
        network: see `timm_encoder`, on its device, in evaluation mode.
        batches: normalised images on the CPU.
    """
    device = next(network.parameters()).device
    found = []
    for pixels in batches:
        with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
            found.append(network(pixels.to(device, non_blocking=True)).float().cpu().numpy())
    return np.concatenate(found)


def lightly_step(objective: str, config: Any, large: list[Tensor], small: list[Tensor]) -> Step:
    """A step of lightly's modules on a ViT of timm, as lightly's examples have it (examples/pytorch `dino.py`...).

    Each view passes through the network by itself. lightly has no example of MoCo v3: its heads are lightly's, and
    the loss is that of facebookresearch/moco-v3 `moco/builder.py`. Sizes of heads are the published ones.

    Args:
        objective: simclr, moco_v3, swav or dino.
        large, small: views (batch, 3, size, size) on the device; only swav and dino have small ones.
    """
    from lightly.loss import DINOLoss, NTXentLoss, SwaVLoss
    from lightly.models import modules
    from lightly.models.utils import update_momentum

    width, device = config.hidden_size, large[0].device

    def build() -> nn.ModuleDict:
        parts: dict[str, nn.Module] = {"backbone": timm_encoder(config, dynamic_img_size=True)}
        if objective == "simclr":
            parts["head"] = modules.SimCLRProjectionHead(width, width, 128)
        elif objective == "moco_v3":
            parts["head"] = modules.MoCoProjectionHead(width, 4096, 256, num_layers=3, batch_norm=True)
        elif objective == "swav":
            parts["head"] = modules.SwaVProjectionHead(width, 2048, 128)
            parts["prototypes"] = modules.SwaVPrototypes(128, 3000)
        else:
            parts["head"] = modules.DINOProjectionHead(width, 2048, 256, 65536, freeze_last_layer=1)
        return nn.ModuleDict(parts).to(device).train()

    network, averaged = build(), build().requires_grad_(False)
    averaged.load_state_dict(network.state_dict())
    trained = nn.ModuleDict({"network": network})
    if objective == "moco_v3":
        network["backbone"].patch_embed.requires_grad_(False)
        predictor = modules.MoCoProjectionHead(256, 4096, 256, num_layers=2, batch_norm=True).to(device)
        trained["predictor"] = predictor
    criteria = {"simclr": NTXentLoss(temperature=0.1), "swav": SwaVLoss(), "dino": DINOLoss(65536)}
    criterion = criteria.get(objective, nn.Identity()).to(device)
    optimizer = torch.optim.AdamW((p for p in trained.parameters() if p.requires_grad), lr=1e-4)

    def project(part: nn.ModuleDict, view: Tensor) -> Tensor:
        return part["head"](part["backbone"](view))

    def prototypes(view: Tensor) -> Tensor:
        return network["prototypes"](nn.functional.normalize(project(network, view), dim=1))

    def contrast(query: Tensor, key: Tensor) -> Tensor:
        query, key = nn.functional.normalize(query, dim=1), nn.functional.normalize(key, dim=1)
        own = torch.arange(len(query), device=device)
        return nn.functional.cross_entropy(query @ key.T / 0.2, own) * 0.4

    def loss_of() -> Tensor:
        if objective == "simclr":
            return criterion(*(project(network, view) for view in large))
        if objective == "swav":
            network["prototypes"].normalize()
            return criterion([prototypes(view) for view in large], [prototypes(view) for view in small])
        for name in network:
            update_momentum(network[name], averaged[name], m=0.99)
        with torch.no_grad():
            seen = [project(averaged, view) for view in large]
        if objective == "dino":
            return criterion(seen, [project(network, view) for view in (*large, *small)], epoch=0)
        first, second = (predictor(project(network, view)) for view in large)
        return contrast(first, seen[1]) + contrast(second, seen[0])

    def step() -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = loss_of()
        loss.backward()
        if objective == "dino":
            network["head"].cancel_last_layer_gradients(current_epoch=0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def lightly_transform(objective: str) -> Callable:
    """lightly's views of an image, which its loader makes with Pillow, image by image."""
    from lightly import transforms as lightly

    if objective == "dino":
        return lightly.DINOTransform(n_local_views=8)
    if objective == "swav":
        return lightly.SwaVTransform()
    return {"simclr": lightly.SimCLRTransform, "moco_v3": lightly.MoCoV2Transform}[objective]()
