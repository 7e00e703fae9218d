"""RetFound models: one deterministic encoder, and around it the masked autoencoder and the classifier."""

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth
from transformers import ViTMAEForPreTraining
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.models.vit_mae.modeling_vit_mae import (
    ViTMAEForPreTrainingOutput,
    ViTMAEPreTrainedModel,
    eager_attention_forward,
)
from transformers.utils import logging
from transformers.utils.generic import can_return_tuple

from ..errors import BadArgumentError, BadModelError, require
from ..vocabulary import MULTI_LABEL, POINTS_FILE, PROBLEM_TYPES, SINGLE_LABEL, problem_type_of
from .adapters import load_adapted
from .compat import PreTrainedConfig
from .compat import initialization as init
from .configuration_retfound import HUB_OPTIONS, RetFoundConfig, is_adapter
from .patches import check_image, is_sincos, positions_for_grid, select_patches, sincos_positions

logger = logging.get_logger(__name__)
FINAL_NORM = ("layernorm.weight", "layernorm.bias")
TABLES = ("position_embeddings", "decoder_pos_embed")
# Options of `from_pretrained` that say where tensors are.
SOURCE = (
    "pretrained_model_name_or_path", "cache_dir", "force_download", "local_files_only", "token", "revision",
    "subfolder", "variant", "use_safetensors", "state_dict", "key_mapping", "weights_only",
)  # fmt: skip


def classification_loss(
    logits: Tensor, labels: Tensor, config: PreTrainedConfig, class_weights: Sequence[float] | None = None,
    label_smoothing: float = 0.0, target_scale: Sequence[float] | None = None,
) -> Tensor:  # fmt: skip
    """Mean loss over a batch; with class weights each image counts by the weight of its class.

    Args:
        logits: (batch, num_labels).
        labels: (batch,) integer classes, or (batch, num_labels) class probabilities from mixup and cutmix, for
            single-label targets; (batch, num_labels) of 0 and 1 for multi-label; (batch,) or (batch, num_labels)
            for regression.
        config: with `problem_type`. None is inferred from the labels by the rule of transformers, and set here, so
            that it is saved with the model.
        class_weights: one per label, of positive labels for multi-label targets.
        label_smoothing: of the targets, in [0, 1); regression has none.
        target_scale: of regression, one per target, by which the errors are divided.

    Returns:
        Scalar: cross-entropy, binary cross-entropy or mean squared error, in float32.
    """
    labels = labels.to(logits.device)
    problem = problem_type_of(config)
    if config.problem_type is None and problem == SINGLE_LABEL and labels.is_floating_point():
        problem = MULTI_LABEL
    require("problem_type", problem, PROBLEM_TYPES)
    logits = logits.float()
    weights = _per_label("class_weights", class_weights, logits)
    scale = _per_label("target_scale", target_scale, logits)
    loss = PROBLEM_TYPES[problem].loss(logits, labels, weights, label_smoothing, scale)
    if config.problem_type is None:
        config.problem_type = problem
    return loss


def _per_label(name: str, values: Sequence[float] | None, logits: Tensor) -> Tensor | None:
    if values is None:
        return None
    if len(values) != logits.shape[-1]:
        message = f"`{name}` has {len(values)} values for {logits.shape[-1]} labels; give one per label"
        raise BadArgumentError(message, field=name, value=values)
    return torch.tensor(values, dtype=logits.dtype, device=logits.device)


class RetFoundPatchEmbeddings(nn.Module):
    def __init__(self, config: RetFoundConfig):
        super().__init__()
        self.projection = nn.Conv2d(
            config.num_channels, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size
        )

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(batch, channels, height, width) -> (batch, patches, width), patches in raster order."""
        return self.projection(pixel_values).flatten(2).transpose(1, 2)


class RetFoundEmbeddings(nn.Module):
    """Patch embeddings plus positions, behind the class token.

    All its parameters are read in its own forward: FSDP, DeepSpeed and offloading bring them for that call alone.
    """

    def __init__(self, config: RetFoundConfig):
        super().__init__()
        self.config = config
        self.grid = config.image_size // config.patch_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        positions = sincos_positions(config.hidden_size, self.grid).to(torch.get_default_dtype())
        self.position_embeddings = nn.Parameter(positions, requires_grad=False)
        self.patch_embeddings = RetFoundPatchEmbeddings(config)

    def forward(
        self, pixel_values: Tensor, interpolate_pos_encoding: bool | None = None, kept: Tensor | None = None
    ) -> Tensor:
        """(batch, channels, height, width) -> (batch, 1 + patches, width); only the patches `kept` (batch, some)."""
        grid = check_image(pixel_values, self.config, interpolate_pos_encoding)
        table = self.position_embeddings
        positions = (positions_for_grid(table, grid) if interpolate_pos_encoding else table)[:, 1:]
        if kept is not None:
            # An image of the kept patches, one below the other: the others need no projection.
            pixel_values = select_patches(pixel_values, kept, self.config.patch_size).transpose(1, 2).flatten(2, 3)
            positions = positions[0, kept]
        patches = self.patch_embeddings(pixel_values.to(self.cls_token.dtype)) + positions
        cls_token = (self.cls_token + table[:, :1]).expand(patches.shape[0], -1, -1)
        return torch.cat([cls_token, patches], dim=1)


class RetFoundProjectionQKV(nn.Linear):
    """A linear layer that is initialised as one third of the MAE code's single (3C, C) matrix."""


class RetFoundSelfAttention(nn.Module):
    def __init__(self, config: RetFoundConfig, width: int, num_heads: int):
        super().__init__()
        self.config = config
        self.num_attention_heads = num_heads
        self.head_dim = width // num_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.query = RetFoundProjectionQKV(width, width, bias=config.qkv_bias)
        self.key = RetFoundProjectionQKV(width, width, bias=config.qkv_bias)
        self.value = RetFoundProjectionQKV(width, width, bias=config.qkv_bias)

    def forward(self, hidden_states: Tensor, output_attentions: bool = False) -> tuple[Tensor, Tensor | None]:
        heads = (*hidden_states.shape[:-1], self.num_attention_heads, self.head_dim)
        query, key, value = (
            layer(hidden_states).view(heads).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        implementation = self.config._attn_implementation
        # Fused kernels never form the attention matrix: whoever asks for it gets the eager path, whatever is set.
        is_eager = output_attentions or implementation == "eager"
        attend = eager_attention_forward if is_eager else ALL_ATTENTION_FUNCTIONS[implementation]
        dropout = self.config.attention_probs_dropout_prob if self.training else 0.0
        context, weights = attend(self, query, key, value, None, dropout=dropout, scaling=self.scaling)
        return context.reshape(hidden_states.shape), weights


class RetFoundProjection(nn.Module):
    """One linear layer under the name `dense`, as the names on disk want it."""

    def __init__(self, width_in: int, width_out: int):
        super().__init__()
        self.dense = nn.Linear(width_in, width_out)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.dense(hidden_states)


class RetFoundAttention(nn.Module):
    def __init__(self, config: RetFoundConfig, width: int, num_heads: int):
        super().__init__()
        self.attention = RetFoundSelfAttention(config, width, num_heads)
        self.output = RetFoundProjection(width, width)

    def forward(self, hidden_states: Tensor, output_attentions: bool = False) -> tuple[Tensor, Tensor | None]:
        context, weights = self.attention(hidden_states, output_attentions)
        return self.output(context), weights


class RetFoundLayer(GradientCheckpointingLayer):
    """Pre-norm transformer block with stochastic depth on both residual branches."""

    def __init__(self, config: RetFoundConfig, width: int, num_heads: int, mlp_width: int, drop_path: float = 0.0):
        super().__init__()
        self.attention = RetFoundAttention(config, width, num_heads)
        self.intermediate = RetFoundProjection(width, mlp_width)
        self.output = RetFoundProjection(mlp_width, width)
        self.layernorm_before = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.layernorm_after = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.activation = ACT2FN[config.hidden_act]
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.drop_path = StochasticDepth(drop_path, mode="row") if drop_path else nn.Identity()

    def forward(self, hidden_states: Tensor, output_attentions: bool = False) -> tuple[Tensor, Tensor | None]:
        attended, weights = self.attention(self.layernorm_before(hidden_states), output_attentions)
        hidden_states = hidden_states + self.drop_path(self.dropout(attended))
        expanded = self.activation(self.intermediate(self.layernorm_after(hidden_states)))
        return hidden_states + self.drop_path(self.dropout(self.output(expanded))), weights


@dataclass
class RetFoundModelOutput(BaseModelOutputWithPooling):
    """Outputs of an encoder.

    Attributes:
        last_hidden_state: (batch, 1 + patches, width) after the final norm: class token, then patches in raster order.
        pooler_output: (batch, width) RETFound's official feature vector, the patch mean normalised without affine.
        patch_mean: (batch, width) mean of the patch tokens, before any norm in RetFound's encoder; the head's input.
        hidden_states, attentions: as everywhere in transformers, when asked for.
    """

    patch_mean: torch.FloatTensor | None = None


def feature_vector(patch_mean: Tensor, eps: float) -> Tensor:
    """`pooler_output` (batch, width) of the mean of the patch tokens."""
    return nn.functional.layer_norm(patch_mean, patch_mean.shape[-1:], eps=eps)


class RetFoundHead(nn.Linear):
    """A linear layer that starts near zero, so that fine-tuning begins from even predictions."""


def classify(model: PreTrainedModel, outputs: RetFoundModelOutput, labels: Tensor | None) -> ImageClassifierOutput:
    """Logits, and the loss where there are labels, from the outputs of the encoder of `model`.

    Args:
        model: its `fc_norm` (applied twice where `config.head_norm` is "double") and its `classifier`.
        labels: see `classification_loss`. In training, the options of the loss that `model.config` was given apply.
    """
    features = model.fc_norm(outputs.patch_mean)
    if getattr(model.config, "head_norm", "single") == "double":
        features = model.fc_norm(features)
    logits = _classifier_logits(model.classifier, features)
    if model.training and logits.requires_grad:
        model.forget_head()
    loss = None
    if labels is not None:
        trains = [parameter.requires_grad for parameter in model.classifier.parameters()]
        if model.training and trains and not any(trains):
            logger.warning_once(
                "training with a frozen classifier; with peft, give LoraConfig "
                "modules_to_save=['fc_norm', 'classifier'] so that the head is trained and saved"
            )
        options = model.config.loss_options if model.training else {}
        loss = classification_loss(logits, labels, model.config, **options)
    return ImageClassifierOutput(
        loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
    )


def _classifier_logits(classifier: nn.Module, features: Tensor) -> Tensor:
    """Logits in the precision of the weights: bfloat16 rounds ages above 64 to half years, and ties ranks.

    The classifier may be any module that was put in its place; one without floating-point weights takes what comes.
    """
    device = features.device.type
    if not torch.is_autocast_enabled(device):
        return classifier(features)
    dtypes = (parameter.dtype for parameter in classifier.parameters() if parameter.is_floating_point())
    with torch.autocast(device, enabled=False):
        return classifier(features.to(next(dtypes, features.dtype)))


class FolderModel:
    """Part of every model class: fixed parameters stay fixed, and the record of a calibration goes with its head.

    Attributes:
        _fixed_parameters: ends of their names: sin-cos positions, and a norm that no output uses.
        _fitted_parameters: ends of the names of those that `from_pretrained` fits to another `image_size`.
        _head_changed: whether the head has been trained or replaced since it was loaded.
    """

    config: Any
    named_parameters: Any
    _fixed_parameters: tuple[str, ...] = ()
    _fitted_parameters: tuple[str, ...] = ()
    _head_changed = False

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, output_loading_info: bool = False, **kwargs):
        adapter, adapter_kwargs = pretrained_model_name_or_path, kwargs.get("adapter_kwargs")
        # An Auto class has looked for an adapter already, and then gives options for one in any case.
        if adapter_kwargs is not None:
            adapter = adapter_kwargs.get("_adapter_model_path")
        given = kwargs if adapter_kwargs is None else {**kwargs, "revision": None, **adapter_kwargs}
        hub = {name: given[name] for name in HUB_OPTIONS if given.get(name) is not None}
        if adapter is not None and is_adapter(adapter, **hub):
            model, info = load_adapted(cls, adapter, hub, *args, **kwargs)
        else:
            load = super().from_pretrained  # type: ignore[misc]
            model, info = load(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        # transformers 5 loads every tensor into a parameter that trains, whatever the model was built with.
        model.freeze_fixed_parameters()
        anew = {*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])}
        if any(name.startswith("classifier.") for name in anew):
            model.forget_head()
        return (model, info) if output_loading_info else model

    def freeze_fixed_parameters(self) -> None:
        """Turn off the gradients of `_fixed_parameters`."""
        for name, parameter in self.named_parameters():
            if name.endswith(self._fixed_parameters):
                parameter.requires_grad_(False)

    @classmethod
    def from_base(cls, *args, **kwargs):
        """`from_pretrained` of the weights that an adapter is put on."""
        return super().from_pretrained(*args, **kwargs)  # type: ignore[misc]

    def forget_head(self) -> None:
        """Reset the record of the calibration of a head that was replaced or is being trained."""
        if not self._head_changed or self.config.is_calibrated:
            self._head_changed = True
            self.config.forget_calibration()

    def save_pretrained(self, save_directory: str | Path, *args, **kwargs):
        if not hasattr(self, "classifier"):
            self.config.forget_calibration()
        saved = super().save_pretrained(save_directory, *args, **kwargs)  # type: ignore[misc]
        points = Path(save_directory, POINTS_FILE)
        if self._head_changed and points.is_file():
            logger.warning(f"{points} is removed: its thresholds belong to the previous head")
            points.unlink()
        return saved


class RetFoundEncoder(nn.Module):
    def __init__(self, config: RetFoundConfig):
        super().__init__()
        last = max(config.num_hidden_layers - 1, 1)
        sizes = config.hidden_size, config.num_attention_heads, config.intermediate_size
        self.layer = nn.ModuleList(
            RetFoundLayer(config, *sizes, drop_path=config.drop_path_rate * index / last)
            for index in range(config.num_hidden_layers)
        )

    def forward(
        self, hidden_states: Tensor, output_attentions: bool = False, output_hidden_states: bool = False
    ) -> BaseModelOutput:
        states: tuple[Tensor, ...] = (hidden_states,)
        attentions: tuple[Tensor, ...] = ()
        for layer in self.layer:
            hidden_states, weights = layer(hidden_states, output_attentions)
            if output_hidden_states:
                states += (hidden_states,)
            if output_attentions:
                attentions += (weights,)
        return BaseModelOutput(
            last_hidden_state=hidden_states,
            hidden_states=states if output_hidden_states else None,
            attentions=attentions if output_attentions else None,
        )


class RetFoundDecoder(nn.Module):
    """Decoder of the masked autoencoder: visible tokens in, pixels of every patch out."""

    def __init__(self, config: RetFoundConfig):
        super().__init__()
        width = config.decoder_hidden_size
        self.grid = config.image_size // config.patch_size
        self.decoder_embed = nn.Linear(config.hidden_size, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        positions = sincos_positions(width, self.grid).to(torch.get_default_dtype())
        self.decoder_pos_embed = nn.Parameter(positions, requires_grad=False)
        self.decoder_layers = nn.ModuleList(
            RetFoundLayer(config, width, config.decoder_num_attention_heads, config.decoder_intermediate_size)
            for _ in range(config.decoder_num_hidden_layers)
        )
        self.decoder_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.decoder_pred = nn.Linear(width, config.patch_size**2 * config.num_channels)

    def forward(
        self, hidden_states: Tensor, ids_restore: Tensor, grid: tuple[int, int], wanted: Tensor | None = None
    ) -> Tensor:
        """(batch, 1 + visible, encoder width), (batch, patches) -> (batch, patches, patch_size^2 * channels).

        The patches are those of `grid`, rows and columns; of them only those numbered in `wanted` (batch, some), if it
        is given.
        """
        hidden_states = self.decoder_embed(hidden_states)
        batch, patches = ids_restore.shape
        hidden = patches + 1 - hidden_states.shape[1]
        tokens = torch.cat([hidden_states[:, 1:], self.mask_token.to(hidden_states).expand(batch, hidden, -1)], dim=1)
        tokens = tokens.gather(1, ids_restore[..., None].expand(-1, -1, tokens.shape[-1]))
        hidden_states = torch.cat([hidden_states[:, :1], tokens], dim=1)
        hidden_states = hidden_states + positions_for_grid(self.decoder_pos_embed, grid)
        for layer in self.decoder_layers:
            hidden_states, _ = layer(hidden_states)
        if wanted is not None:
            places = (1 + wanted)[..., None].expand(-1, -1, hidden_states.shape[-1])
            return self.decoder_pred(self.decoder_norm(hidden_states.gather(1, places)))
        return self.decoder_pred(self.decoder_norm(hidden_states))[:, 1:]


class RetFoundPreTrainedModel(FolderModel, ViTMAEPreTrainedModel):
    config_class = RetFoundConfig
    config: RetFoundConfig
    base_model_prefix = "vit"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    # The forwards take **kwargs for the transformers interface; the losses are plain batch means, which Trainer must
    # divide by the accumulation steps itself.
    accepts_loss_kwargs = False
    _no_split_modules = ["RetFoundEmbeddings", "RetFoundLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_record_outputs = {}
    _fixed_parameters: tuple[str, ...] = TABLES
    _fitted_parameters: tuple[str, ...] = TABLES

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        # transformers searches the module's text for one spelling of the interface, which differs between versions.
        return True

    @classmethod
    def from_pretrained(
        cls, *args, ignore_mismatched_sizes: bool = False, output_loading_info: bool = False, **kwargs
    ):
        """As everywhere in transformers, and with `image_size`: position tables of another size are fitted to it.

        Sin-cos positions, which pretraining keeps, are computed anew; trained ones are interpolated bicubically.
        """
        options = {**kwargs, "ignore_mismatched_sizes": True, "output_loading_info": True}
        model, info = super().from_pretrained(*args, **options)
        tables = {name: shape for name, shape, own in info["mismatched_keys"]
                  if name.endswith(TABLES) and shape[-1] == own[-1]}  # fmt: skip
        others = {mismatch for mismatch in info["mismatched_keys"] if mismatch[0] not in tables}
        if others and not ignore_mismatched_sizes:
            named = "; ".join(f"{name} {tuple(shape)} for {tuple(own)}" for name, shape, own in sorted(others))
            raise RuntimeError(
                f"size mismatch between the weights and {cls.__name__}: {named}. You may consider adding "
                "`ignore_mismatched_sizes=True` to `from_pretrained(...)` if appropriate."
            )
        if tables:
            config = copy.deepcopy(model.config)
            config.image_size = math.isqrt(next(iter(tables.values()))[1] - 1) * config.patch_size
            config.name_or_path = str(args[0])  # of an adapter too, whose own configuration has the wanted size
            source = {name: value for name, value in kwargs.items() if name in SOURCE}
            stored = cls.from_pretrained(*args, config=config, ignore_mismatched_sizes=True, **source)
            model._fit_tables(tables, stored)
            info["mismatched_keys"] = others
        return (model, info) if output_loading_info else model

    @torch.no_grad()
    def _fit_tables(self, names: Iterable[str], stored: "RetFoundPreTrainedModel") -> None:
        """Take position tables of another size from `stored`, a model of that size."""
        before, size = stored.config.image_size, self.config.image_size
        for name in names:
            part, _, table = name.rpartition(".")
            module = self.get_submodule(part)
            for own, value in stored.get_submodule(part).named_parameters(recurse=False):
                # transformers 4.57 has drawn anew what stands beside the table, too.
                if own == table:
                    anew = before != self.config.interpolated_from and is_sincos(value)
                    shape = value.shape[2], module.grid, value.device
                    value = sincos_positions(*shape) if anew else positions_for_grid(value, module.grid)
                    how = "computed by their formula" if anew else "interpolated"
                    logger.warning(f"{name} of {before} x {before} px images: {how} for {size} x {size} px")
                getattr(module, own).copy_(value)

    def resize_positions(self, image_size: int) -> None:
        """Take images of another size from now on, with interpolated positions, as the official fine-tuning does."""
        if image_size % self.config.patch_size:
            raise BadArgumentError(
                f"`image_size={image_size}` is not a multiple of the model's patch size {self.config.patch_size}",
                field="image_size", value=image_size,
            )  # fmt: skip
        self.config.interpolated_from, self.config.image_size = self.config.image_size, image_size
        for module in self.modules():
            for name, table in list(module.named_parameters(recurse=False)):
                if name in TABLES:
                    module.grid = image_size // self.config.patch_size
                    resized = positions_for_grid(table.detach(), module.grid)
                    setattr(module, name, nn.Parameter(resized, requires_grad=table.requires_grad))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialisation of the released MAE code (He et al. 2022): Xavier-uniform, tokens normal, positions fixed."""
        if isinstance(module, RetFoundHead):
            init.trunc_normal_(module.weight, std=2e-5)  # as in the official fine-tuning code
            init.zeros_(module.bias)
        elif isinstance(module, (nn.Linear, nn.Conv2d)):
            fan_out, fan_in = module.weight.shape[0], math.prod(module.weight.shape[1:])
            rows = 3 * fan_out if isinstance(module, RetFoundProjectionQKV) else fan_out
            bound = math.sqrt(6 / (fan_in + rows))  # Xavier, the convolution counted as a linear layer on patches
            init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, RetFoundEmbeddings):
            init.normal_(module.cls_token, std=self.config.initializer_range)
            init.copy_(module.position_embeddings, sincos_positions(self.config.hidden_size, module.grid))
        elif isinstance(module, RetFoundDecoder):
            init.normal_(module.mask_token, std=self.config.initializer_range)
            init.copy_(module.decoder_pos_embed, sincos_positions(self.config.decoder_hidden_size, module.grid))

    def save_pretrained(self, save_directory: str | Path, *args, **kwargs):
        self.config.encoder_only = not isinstance(self, RetFoundForPreTraining)
        if self._auto_class is None and hasattr(self.config, "auto_map"):
            del self.config.auto_map  # of a published folder: the files that it names do not come along
        return super().save_pretrained(save_directory, *args, **kwargs)


class RetFoundModel(RetFoundPreTrainedModel):
    """The encoder. It never masks: every patch in raster order, the same output on every call.

    Args:
        config: of the model.
        add_pooling_layer: give the feature vector `pooler_output`. The final norm is not on the way to it and stays
            as it is in training. Without the vector heads are put on `last_hidden_state`, and the norm trains.
    """

    _keys_to_ignore_on_load_unexpected = [r"^decoder\.", r"^fc_norm\.", r"^classifier\."]

    def __init__(self, config: RetFoundConfig, add_pooling_layer: bool = True):
        super().__init__(config)
        self.embeddings = RetFoundEmbeddings(config)
        self.encoder = RetFoundEncoder(config)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.add_pooling_layer = add_pooling_layer
        if add_pooling_layer:
            self._fixed_parameters = (*self._fixed_parameters, *FINAL_NORM)
        self.freeze_fixed_parameters()
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.patch_embeddings

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        interpolate_pos_encoding: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> RetFoundModelOutput:
        """Encode normalised images.

        Args:
            pixel_values: (batch, 3, height, width), ImageNet-normalised.
            interpolate_pos_encoding: interpolate the positions for a size that is not `config.image_size`, which is
                an error otherwise.
            output_attentions: return the attention matrices too, computed by the eager path.
            output_hidden_states: return the input of the first block and the output of every block too.
        """
        encoded = self.encoder(
            self.embeddings(pixel_values, interpolate_pos_encoding),
            *requested_outputs(self.config, output_attentions, output_hidden_states),
        )
        patch_mean = encoded.last_hidden_state[:, 1:].mean(dim=1)
        return RetFoundModelOutput(
            last_hidden_state=self.layernorm(encoded.last_hidden_state),
            pooler_output=feature_vector(patch_mean, self.config.layer_norm_eps) if self.add_pooling_layer else None,
            patch_mean=patch_mean,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )


def requested_outputs(config: RetFoundConfig, attentions: bool | None, states: bool | None) -> tuple[bool, bool]:
    """The switches for attentions and hidden states, from the call or else from the configuration."""
    attentions = config.output_attentions if attentions is None else attentions
    return attentions, config.output_hidden_states if states is None else states


class RetFoundForPreTraining(RetFoundPreTrainedModel, ViTMAEForPreTraining):
    """The masked autoencoder, a `ViTMAEForPreTraining` with the same outputs and the same loss.

    Raises:
        BadModelError: the configuration says that the weights have no decoder (`encoder_only`).
    """

    _keys_to_ignore_on_load_unexpected = [r"^fc_norm\.", r"^classifier\."]

    def __init__(self, config: RetFoundConfig):
        # Not `ViTMAEForPreTraining.__init__`, which would build the stock encoder, one that masks by itself.
        PreTrainedModel.__init__(self, config)
        if config.encoder_only:
            raise BadModelError(
                "this folder holds an encoder without decoder (encoder_only=true in its config.json), so pretraining "
                "cannot continue from it; pass encoder_only=False to from_pretrained to start with a fresh decoder",
                model=config.name_or_path,
            )
        self.vit = RetFoundModel(config)
        self.vit.layernorm.requires_grad_(True)  # it is on the way to the decoder
        self.decoder = RetFoundDecoder(config)
        self.post_init()

    def random_masking(self, noise: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Keep the int(patches * (1 - mask_ratio)) patches of lowest noise (batch, patches).

        Returns:
            numbers of the visible patches (batch, kept) and of the hidden ones; mask (batch, patches), 1 where hidden;
            ids_restore (batch, patches).
        """
        kept = int(noise.shape[1] * (1 - self.config.mask_ratio))
        shuffle = noise.argsort(dim=1)
        restore = shuffle.argsort(dim=1)
        return shuffle[:, :kept], shuffle[:, kept:], (restore >= kept).to(torch.float32), restore

    def patch_targets(self, pixel_values: Tensor, numbers: Tensor | None = None) -> Tensor:
        """Patches as the loss wants them, (batch, patches, values); standardised each under `norm_pix_loss`.

        Args:
            numbers: (batch, patches) of those wanted; None for all.
        """
        if numbers is None:
            target = self.patchify(pixel_values, interpolate_pos_encoding=True)
        else:
            target = select_patches(pixel_values, numbers, self.config.patch_size).permute(0, 1, 3, 4, 2).flatten(2)
        if not self.config.norm_pix_loss:
            return target
        # By the unbiased variance, with 1e-6 added to it; as one operation it takes a tenth of the time on a CPU.
        share = 1 - 1 / target.shape[-1]
        return share**0.5 * nn.functional.layer_norm(target, target.shape[-1:], eps=1e-6 * share)

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        noise: Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        predict_all: bool = True,
        **kwargs,
    ) -> ViTMAEForPreTrainingOutput:
        """Mask, encode what is visible, reconstruct; arguments and outputs as in `ViTMAEForPreTraining`.

        Args:
            predict_all: predict the visible patches too, which do not count in the loss; without them `logits` is
                None, and a training step is faster.
        """
        grid, device = check_image(pixel_values, self.config, interpolate_pos_encoding), pixel_values.device
        noise = torch.rand(len(pixel_values), grid[0] * grid[1], device=device) if noise is None else noise.to(device)
        visible, hidden, mask, ids_restore = self.random_masking(noise)
        encoded = self.vit.encoder(
            self.vit.embeddings(pixel_values, interpolate_pos_encoding, visible),
            *requested_outputs(self.config, output_attentions, output_hidden_states),
        )
        latent, logits = self.vit.layernorm(encoded.last_hidden_state), None
        target = self.patch_targets(pixel_values, None if predict_all else hidden)
        if predict_all:
            logits = self.decoder(latent, ids_restore, grid)
            loss = (((logits - target) ** 2).mean(-1) * mask).sum() / mask.sum()
        else:  # every image hides as many patches
            predicted = self.decoder(latent, ids_restore, grid, hidden)
            loss = nn.functional.mse_loss(predicted.to(target.dtype), target)
        return ViTMAEForPreTrainingOutput(
            loss=loss,
            logits=logits,
            mask=mask,
            ids_restore=ids_restore,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )


class RetFoundForImageClassification(RetFoundPreTrainedModel):
    """The fine-tuned model: mean of the patch tokens, `fc_norm` (once or twice), one linear layer.

    Fine-tuning trains the positions, as the official code does. The final norm is not on the way to the logits: it
    stays as it is, in the folder for `AutoModel`.
    """

    _fixed_parameters: tuple[str, ...] = FINAL_NORM
    _keys_to_ignore_on_load_unexpected = [r"^decoder\."]

    def __init__(self, config: RetFoundConfig):
        super().__init__(config)
        self.vit = RetFoundModel(config)
        self.fc_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.classifier = RetFoundHead(config.hidden_size, config.num_labels)
        self.vit.embeddings.position_embeddings.requires_grad_(True)
        self.freeze_fixed_parameters()
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> ImageClassifierOutput:
        """Classify normalised images.

        Args:
            pixel_values: (batch, 3, height, width), ImageNet-normalised.
            labels: see `classification_loss`; when given, the output holds the mean loss.

        Returns:
            `ImageClassifierOutput` with logits (batch, num_labels).
        """
        outputs = self.vit(
            pixel_values,
            interpolate_pos_encoding=interpolate_pos_encoding,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        return classify(self, outputs, labels)
