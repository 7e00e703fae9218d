"""`RetFoundConfig`: a ViT-MAE configuration with RETFound's values, its classifier's options and named presets."""

from typing import Any

from transformers import ViTMAEConfig

from ..vocabulary import MODALITIES

HEAD_NORMS = ("single", "double")

# Only what differs from the defaults of `RetFoundConfig.__init__`, which are the paper's ViT-L.
PRESETS: dict[str, dict[str, Any]] = {
    **{f"retfound-{row.name}": {"modality": row.name, "mask_ratio": row.mask_ratio} for row in MODALITIES.values()},
    "retfound-tiny": {
        "hidden_size": 192,
        "num_hidden_layers": 12,
        "num_attention_heads": 3,
        "intermediate_size": 768,
        "decoder_hidden_size": 128,
        "decoder_num_hidden_layers": 4,
        "decoder_num_attention_heads": 4,
        "decoder_intermediate_size": 512,
    },
}


class RetFoundConfig(ViTMAEConfig):
    """Configuration of every RetFound model; the defaults are the paper's ViT-L/16 (Zhou et al. 2023, Methods).

    Defaults that differ from `ViTMAEConfig`: the ViT-L sizes, `layer_norm_eps` 1e-6 (1e-12 there) and
    `norm_pix_loss` true (false there), as in the pretraining of RETFound.

    Args:
        drop_path_rate: stochastic depth of the last encoder block in training; block i of L has the share i/(L-1).
        head_norm: `"single"` for `classifier(fc_norm(mean))`, `"double"` when `fc_norm` is applied twice, as the
            official fine-tuning code has done since 2025.
        label_smoothing: smoothing of the targets in the classification losses, in [0, 1).
        class_weights: one weight per label in the loss (positive-class weights for multi-label targets).
        target_scale: regression only: one scale per target, by which the errors are divided in the loss.
        calibration_temperature: by which the head was divided after training, to calibrate its probabilities (Guo et
            al. 2017). A record: the stored weights hold the division, and every reader of them is calibrated.
        modality: `"cfp"` (colour fundus photographs), `"oct"` (OCT B-scans) or None when unknown.
        encoder_only: the weights have no decoder, so that pretraining cannot continue from them.
        weights_license: licence that the weights carry on to whatever is made from them; conversion sets it, and it
            travels with the configuration.

    Raises:
        ValueError: sizes that do not fit each other, or a value outside its range.
    """

    model_type = "retfound"

    def __init__(
        self,
        hidden_size: int = 1024,
        num_hidden_layers: int = 24,
        num_attention_heads: int = 16,
        intermediate_size: int = 4096,
        layer_norm_eps: float = 1e-6,
        image_size: int = 224,
        patch_size: int = 16,
        decoder_hidden_size: int = 512,
        decoder_num_hidden_layers: int = 8,
        decoder_num_attention_heads: int = 16,
        decoder_intermediate_size: int = 2048,
        mask_ratio: float = 0.75,
        norm_pix_loss: bool = True,
        drop_path_rate: float = 0.0,
        head_norm: str = "single",
        label_smoothing: float = 0.0,
        class_weights: list[float] | None = None,
        target_scale: list[float] | None = None,
        calibration_temperature: float = 1.0,
        modality: str | None = None,
        encoder_only: bool = False,
        weights_license: str | None = None,
        **kwargs: Any,
    ):
        self.drop_path_rate = drop_path_rate
        self.head_norm = head_norm
        self.label_smoothing = label_smoothing
        self.class_weights = class_weights
        self.target_scale = target_scale
        self.calibration_temperature = calibration_temperature
        self.modality = modality
        self.encoder_only = encoder_only
        self.weights_license = weights_license
        super().__init__(
            hidden_size=hidden_size,
            num_hidden_layers=num_hidden_layers,
            num_attention_heads=num_attention_heads,
            intermediate_size=intermediate_size,
            layer_norm_eps=layer_norm_eps,
            image_size=image_size,
            patch_size=patch_size,
            decoder_hidden_size=decoder_hidden_size,
            decoder_num_hidden_layers=decoder_num_hidden_layers,
            decoder_num_attention_heads=decoder_num_attention_heads,
            decoder_intermediate_size=decoder_intermediate_size,
            mask_ratio=mask_ratio,
            norm_pix_loss=norm_pix_loss,
            **kwargs,
        )
        self.check()

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> "RetFoundConfig":
        """The configuration called `name` in `PRESETS`, with `overrides` on top."""
        if name not in PRESETS:
            raise ValueError(f"preset {name!r} is unknown; accepted: {', '.join(PRESETS)}")
        return cls(**{**PRESETS[name], **overrides})

    def check(self) -> None:
        """Raise ValueError for values that no model can be built from."""
        for prefix in ("", "decoder_"):
            width, heads = getattr(self, f"{prefix}hidden_size"), getattr(self, f"{prefix}num_attention_heads")
            if width % heads:
                raise ValueError(
                    f"{prefix}hidden_size={width} is not a multiple of {prefix}num_attention_heads={heads}"
                )
            if width % 4:
                raise ValueError(f"{prefix}hidden_size={width} is not a multiple of 4, as 2-D sin-cos positions need")
        if not isinstance(self.image_size, int) or not isinstance(self.patch_size, int):
            raise ValueError(
                f"image_size={self.image_size} and patch_size={self.patch_size} must be integers: images are square"
            )
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size={self.image_size} is not a multiple of patch_size={self.patch_size}")
        for name in ("mask_ratio", "drop_path_rate", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 0 and below 1")
        if not self.calibration_temperature > 0:
            raise ValueError(f"calibration_temperature={self.calibration_temperature} must be above 0")
        if self.head_norm not in HEAD_NORMS:
            raise ValueError(f"head_norm={self.head_norm!r} is unknown; accepted: {', '.join(HEAD_NORMS)}")
        if self.modality is not None and self.modality not in MODALITIES:
            raise ValueError(f"modality={self.modality!r} is unknown; accepted: {', '.join(MODALITIES)} or None")
