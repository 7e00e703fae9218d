"""RetFound models: one deterministic encoder, and around it the masked autoencoder and the classifier.

The module names are those of ViT-MAE in transformers 4.x, so that the tensors on disk bear the names that stock
`ViTMAEForPreTraining` reads in 4.57 and in 5.x.
"""

import math
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import ViTMAEForPreTraining
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput, ImageClassifierOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.models.vit_mae.modeling_vit_mae import (
    ViTMAEForPreTrainingOutput,
    ViTMAEPreTrainedModel,
)
from transformers.utils.generic import can_return_tuple

from .configuration import RetFoundConfig
from .head import RetFoundHead, RetFoundModelOutput, classify
from .layers import RetFoundEmbeddings, RetFoundLayer, RetFoundProjectionQKV
from .positions import positions_for_grid, sincos_positions


class RetFoundEncoder(nn.Module):
    def __init__(self, config: RetFoundConfig):
        super().__init__()
        last = max(config.num_hidden_layers - 1, 1)
        self.layer = nn.ModuleList(
            RetFoundLayer(
                config,
                config.hidden_size,
                config.num_attention_heads,
                config.intermediate_size,
                drop_path=config.drop_path_rate * index / last,
            )
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
    """The light decoder of the masked autoencoder: visible tokens in, pixels of every patch out."""

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

    def forward(self, hidden_states: Tensor, ids_restore: Tensor) -> Tensor:
        """(batch, 1 + visible, encoder width), (batch, patches) -> (batch, patches, patch_size^2 * channels)."""
        hidden_states = self.decoder_embed(hidden_states)
        batch, patches = ids_restore.shape
        hidden = patches + 1 - hidden_states.shape[1]
        tokens = torch.cat([hidden_states[:, 1:], self.mask_token.to(hidden_states).expand(batch, hidden, -1)], dim=1)
        tokens = tokens.gather(1, ids_restore[..., None].expand(-1, -1, tokens.shape[-1]))
        hidden_states = torch.cat([hidden_states[:, :1], tokens], dim=1)
        hidden_states = hidden_states + positions_for_grid(self.decoder_pos_embed, math.isqrt(patches))
        for layer in self.decoder_layers:
            hidden_states, _ = layer(hidden_states)
        return self.decoder_pred(self.decoder_norm(hidden_states))[:, 1:]


class RetFoundPreTrainedModel(ViTMAEPreTrainedModel):
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
    # Endings of the names of parameters that no training changes.
    _fixed_parameters: tuple[str, ...] = ("position_embeddings", "decoder_pos_embed")

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        loaded = super().from_pretrained(*args, **kwargs)
        # transformers 5 loads every tensor into a parameter that trains, whatever the model was built with.
        (loaded[0] if isinstance(loaded, tuple) else loaded).freeze_fixed_parameters()
        return loaded

    def freeze_fixed_parameters(self) -> None:
        """Turn off the gradients of what stays as it is: sin-cos positions, or the norm that a classifier skips."""
        for name, parameter in self.named_parameters():
            if name.endswith(self._fixed_parameters):
                parameter.requires_grad_(False)

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
    """The encoder. It never masks: every patch in raster order, the same output on every call."""

    _keys_to_ignore_on_load_unexpected = [r"^decoder\.", r"^fc_norm\.", r"^classifier\."]

    def __init__(self, config: RetFoundConfig):
        super().__init__(config)
        self.embeddings = RetFoundEmbeddings(config)
        self.encoder = RetFoundEncoder(config)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
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
            pixel_values: (batch, 3, size, size), ImageNet-normalised.
            interpolate_pos_encoding: None interpolates the positions when size differs from `config.image_size`;
                False makes such a size an error.
            output_attentions: return the attention matrices too, computed by the eager path.
            output_hidden_states: return the input of the first block and the output of every block too.
        """
        patches = self.embeddings(pixel_values, interpolate_pos_encoding)
        encoded = self.encoder(
            self.embeddings.with_class_token(patches),
            *requested_outputs(self.config, output_attentions, output_hidden_states),
        )
        patch_mean = encoded.last_hidden_state[:, 1:].mean(dim=1)
        return RetFoundModelOutput(
            last_hidden_state=self.layernorm(encoded.last_hidden_state),
            pooler_output=nn.functional.layer_norm(patch_mean, patch_mean.shape[-1:], eps=self.config.layer_norm_eps),
            patch_mean=patch_mean,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )


def requested_outputs(
    config: RetFoundConfig, attentions: bool | None, hidden_states: bool | None
) -> tuple[bool, bool]:
    """The two output switches, from the call or else from the configuration."""
    return (
        config.output_attentions if attentions is None else attentions,
        config.output_hidden_states if hidden_states is None else hidden_states,
    )


class RetFoundForPreTraining(RetFoundPreTrainedModel, ViTMAEForPreTraining):
    """The masked autoencoder, a `ViTMAEForPreTraining` with the same outputs and the same loss.

    Raises:
        ValueError: the configuration says that the weights have no decoder (`encoder_only`).
    """

    _keys_to_ignore_on_load_unexpected = [r"^fc_norm\.", r"^classifier\."]

    def __init__(self, config: RetFoundConfig):
        # Not `ViTMAEForPreTraining.__init__`, which would build the stock encoder, one that masks by itself.
        PreTrainedModel.__init__(self, config)
        if config.encoder_only:
            raise ValueError(
                "this folder holds an encoder without decoder (encoder_only=true in its config.json), so pretraining "
                "cannot continue from it; pass encoder_only=False to from_pretrained to start with a fresh decoder"
            )
        self.vit = RetFoundModel(config)
        self.decoder = RetFoundDecoder(config)
        self.post_init()

    def random_masking(self, patches: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Keep the int(patches * (1 - mask_ratio)) patches of lowest noise, drawn uniformly unless given.

        Returns:
            visible patches (batch, kept, width); mask (batch, patches), 1 where hidden; ids_restore (batch, patches).
        """
        batch, count, width = patches.shape
        kept = int(count * (1 - self.config.mask_ratio))
        if noise is None:
            noise = torch.rand(batch, count, device=patches.device)
        shuffle = noise.to(patches.device).argsort(dim=1)
        restore = shuffle.argsort(dim=1)
        visible = patches.gather(1, shuffle[:, :kept, None].expand(-1, -1, width))
        return visible, (restore >= kept).to(torch.float32), restore

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        noise: Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> ViTMAEForPreTrainingOutput:
        """Mask, encode what is visible, reconstruct; arguments and outputs as in `ViTMAEForPreTraining`."""
        patches = self.vit.embeddings(pixel_values, interpolate_pos_encoding)
        visible, mask, ids_restore = self.random_masking(patches, noise)
        encoded = self.vit.encoder(
            self.vit.embeddings.with_class_token(visible),
            *requested_outputs(self.config, output_attentions, output_hidden_states),
        )
        logits = self.decoder(self.vit.layernorm(encoded.last_hidden_state), ids_restore)
        target = self.patchify(pixel_values, interpolate_pos_encoding=True)
        if self.config.norm_pix_loss:
            target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
        loss = ((logits - target) ** 2).mean(-1)
        return ViTMAEForPreTrainingOutput(
            loss=(loss * mask).sum() / mask.sum(),
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

    _fixed_parameters = ("vit.layernorm.weight", "vit.layernorm.bias")
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
            pixel_values: (batch, 3, size, size), ImageNet-normalised.
            labels: see `losses.classification_loss`; when given, the output holds the mean loss.

        Returns:
            `ImageClassifierOutput` with logits (batch, num_labels).
        """
        outputs = self.vit(
            pixel_values,
            interpolate_pos_encoding=interpolate_pos_encoding,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        return classify(self, outputs, labels)
