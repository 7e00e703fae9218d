"""The parts of a RetFound model: patch embeddings with positions, attention, the transformer block."""

import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.vit_mae.modeling_vit_mae import eager_attention_forward

from .configuration import RetFoundConfig
from .positions import positions_for_grid, sincos_positions


class RetFoundPatchEmbeddings(nn.Module):
    def __init__(self, config: RetFoundConfig):
        super().__init__()
        self.projection = nn.Conv2d(
            config.num_channels, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size
        )

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(batch, channels, size, size) -> (batch, patches, width), patches in raster order."""
        return self.projection(pixel_values).flatten(2).transpose(1, 2)


class RetFoundEmbeddings(nn.Module):
    """Patch embeddings plus positions; the class token is added by `with_class_token`, after any masking."""

    def __init__(self, config: RetFoundConfig):
        super().__init__()
        self.config = config
        self.grid = config.image_size // config.patch_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        positions = sincos_positions(config.hidden_size, self.grid).to(torch.get_default_dtype())
        self.position_embeddings = nn.Parameter(positions, requires_grad=False)
        self.patch_embeddings = RetFoundPatchEmbeddings(config)

    def forward(self, pixel_values: Tensor, interpolate_pos_encoding: bool | None = None) -> Tensor:
        grid = check_image(pixel_values, self.config, interpolate_pos_encoding)
        patches = self.patch_embeddings(pixel_values.to(self.patch_embeddings.projection.weight.dtype))
        return patches + positions_for_grid(self.position_embeddings, grid)[:, 1:]

    def with_class_token(self, patches: Tensor) -> Tensor:
        cls_token = self.cls_token + self.position_embeddings[:, :1]
        return torch.cat([cls_token.expand(patches.shape[0], -1, -1), patches], dim=1)


def check_image(pixel_values: Tensor, config: RetFoundConfig, interpolate_pos_encoding: bool | None) -> int:
    """The number of patches on a side, or a ValueError that says what the model accepts.

    `interpolate_pos_encoding`: None interpolates positions where the size asks for it, False refuses other sizes.
    """
    if pixel_values.ndim != 4 or pixel_values.shape[1] != config.num_channels:
        raise ValueError(
            f"pixel_values has shape {tuple(pixel_values.shape)}; accepted: (batch, {config.num_channels}, size, size)"
        )
    height, width = pixel_values.shape[2:]
    if height != width or height % config.patch_size:
        raise ValueError(
            f"image size {height} x {width} is not accepted: it must be square and a multiple of the patch size "
            f"{config.patch_size}, such as {config.image_size} x {config.image_size}"
        )
    if interpolate_pos_encoding is False and height != config.image_size:
        raise ValueError(
            f"image size {height} differs from the model's {config.image_size}; "
            "leave interpolate_pos_encoding unset to interpolate the positions"
        )
    return height // config.patch_size


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
        if output_attentions or implementation == "eager":
            attend = eager_attention_forward
        else:
            attend = ALL_ATTENTION_FUNCTIONS[implementation]
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
