"""`RetFoundConfig`: a ViT-MAE configuration with RETFound's values, the classifier's options and named presets."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from transformers import ViTMAEConfig
from transformers.utils.peft_utils import find_adapter_config_file

from ..errors import BadArgumentError, require
from ..vocabulary import MODALITIES
from .compat import BackboneConfigMixin

ADAPTER_FILE = "adapter_config.json"
WEIGHTS = ("model*.safetensors*", "pytorch_model*.bin*")
PACKAGED = Path(__file__).parent / "weights"  # folders of weights that come with the package
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token")
HEAD_NORMS = ("single", "double")
SHARE = "must be at least 0 and below 1"
# Values for a head that was not calibrated.
UNCALIBRATED = {"calibration_temperature": 1.0, "calibration_slope": None, "calibration_intercept": None}
# Options of the loss belong to one training: they are not saved, and those in older files are ignored.
LOSS_OPTIONS = ("label_smoothing", "class_weights", "target_scale")

# Only what differs from the defaults of `RetFoundConfig.__init__`, which are the paper's ViT-L.
PRESETS: dict[str, dict[str, Any]] = {
    **{f"retfound-{row.name}": {"modality": row.name, "mask_ratio": row.mask_ratio} for row in MODALITIES.values()},
    "retfound-tiny": {
        "hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 3, "intermediate_size": 768,
        "decoder_hidden_size": 128, "decoder_num_hidden_layers": 4, "decoder_num_attention_heads": 4,
        "decoder_intermediate_size": 512,
    },
    "retfound-mini": {
        "image_size": 128, "hidden_size": 192, "num_hidden_layers": 6, "num_attention_heads": 3,
        "intermediate_size": 768, "decoder_hidden_size": 64, "decoder_num_hidden_layers": 2,
        "decoder_num_attention_heads": 4, "decoder_intermediate_size": 256,
    },
}  # fmt: skip


def is_calibrated(settings: Mapping[str, Any]) -> bool:
    """Whether a configuration records a calibration, which the head contains."""
    return any(settings.get(name, value) != value for name, value in UNCALIBRATED.items())


class HeadOptions:
    """Part of a configuration that describes fine-tuning: the loss, stochastic depth, calibration, modality.

    The options of the loss (`loss_options`) hold for the training of the model that is given them, in training mode.
    They are neither saved nor read: in evaluation, and for whoever trains the folder again, the loss is plain.

    Args:
        drop_path_rate: stochastic depth of the last encoder block in training; block i of L has the share i/(L-1).
        label_smoothing: smoothing of the targets in the classification losses, in [0, 1).
        class_weights: one weight per label in the loss (positive-class weights for multi-label targets).
        target_scale: regression only: one scale per target, by which the errors are divided in the loss.
        calibration_slope, calibration_intercept: one factor and one summand per label, by which the head was changed
            after training to calibrate its probabilities; None where it was not. A record: the stored weights contain
            the change, so every reader of them gets calibrated probabilities. Both are reset to None when the head is
            trained further or replaced.
        calibration_temperature: the same for older folders, whose head was divided by one number (Guo et al. 2017).
        modality: key of `MODALITIES` ("cfp", "oct"), or None when unknown.
        kwargs: of the configuration that it is mixed into.
    """

    def __init__(
        self,
        drop_path_rate: float = 0.0,
        label_smoothing: float = 0.0,
        class_weights: list[float] | None = None,
        target_scale: list[float] | None = None,
        calibration_temperature: float = 1.0,
        calibration_slope: list[float] | None = None,
        calibration_intercept: list[float] | None = None,
        modality: str | None = None,
        **kwargs: Any,
    ):
        self.drop_path_rate = drop_path_rate
        self.label_smoothing = label_smoothing
        self.class_weights = class_weights
        self.target_scale = target_scale
        self.calibration_temperature = calibration_temperature
        self.calibration_slope, self.calibration_intercept = calibration_slope, calibration_intercept
        self.modality = modality
        super().__init__(**kwargs)
        for name in ("drop_path_rate", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                self._refuse(name, SHARE)
        if not calibration_temperature > 0:
            self._refuse("calibration_temperature", "must be above 0")
        if (calibration_slope is None) != (calibration_intercept is None):
            self._refuse("calibration_slope", "needs `calibration_intercept`, and vice versa")
        if calibration_slope is not None and not min(calibration_slope) > 0:
            self._refuse("calibration_slope", "must hold numbers above 0")
        if modality is not None:
            require("modality", modality, MODALITIES)

    @property
    def is_calibrated(self) -> bool:
        """Whether the head contains a calibration."""
        return is_calibrated(vars(self))

    def forget_calibration(self) -> None:
        """Reset the record of the calibration of a head that was trained further or replaced."""
        for name, value in UNCALIBRATED.items():
            setattr(self, name, value)

    @property
    def loss_options(self) -> dict[str, Any]:
        """Options of `classification_loss`."""
        return {name: getattr(self, name) for name in LOSS_OPTIONS}

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        return super().from_dict(_without_loss(config_dict), **kwargs)  # type: ignore[misc]

    def to_dict(self) -> dict[str, Any]:
        return _without_loss(super().to_dict())  # type: ignore[misc]

    def _refuse(self, name: str, reason: str) -> NoReturn:
        value = getattr(self, name)
        raise BadArgumentError(f"`{name}={value}` {reason}", field=name, value=value)


def _without_loss(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in LOSS_OPTIONS}


class RetFoundConfig(HeadOptions, BackboneConfigMixin, ViTMAEConfig):
    """Configuration of every RetFound model; the defaults are the paper's ViT-L/16 (Zhou et al. 2023, Methods).

    Defaults that differ from `ViTMAEConfig`: the ViT-L sizes, `layer_norm_eps` 1e-6 (1e-12 there) and
    `norm_pix_loss` true (false there), as in the pretraining of RETFound.

    Args:
        head_norm: `"single"` for `classifier(fc_norm(mean))`, `"double"` when `fc_norm` is applied twice, as the
            official fine-tuning code has done since 2025.
        encoder_only: the weights have no decoder, so that pretraining cannot continue from them.
        interpolated_from: `image_size` of the weights whose position table was interpolated to the present one.
        weights_license: licence that the weights carry on to whatever is made from them; conversion sets it, and it
            travels with the configuration.
        out_features, out_indices: blocks whose output a backbone gives, as "stage1" or 1 to the last, "stem" or 0 for
            the input of the first; the last block by default.
        apply_layernorm: a backbone gives them after the encoder's final norm.
        reshape_hidden_states: a backbone gives maps (batch, width, rows, columns) of the patches, not all tokens.
        kwargs: of `HeadOptions` and `ViTMAEConfig`.

    Raises:
        BadArgumentError: sizes that do not fit each other, or a value outside its range.
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
        norm_pix_loss: bool = True,
        head_norm: str = "single",
        encoder_only: bool = False,
        interpolated_from: int | None = None,
        weights_license: str | None = None,
        out_features: list[str] | None = None,
        out_indices: list[int] | None = None,
        apply_layernorm: bool = True,
        reshape_hidden_states: bool = True,
        **kwargs: Any,
    ):
        self.head_norm = head_norm
        self.encoder_only = encoder_only
        self.interpolated_from = interpolated_from
        self.weights_license = weights_license
        self.apply_layernorm = apply_layernorm
        self.reshape_hidden_states = reshape_hidden_states
        super().__init__(
            hidden_size=hidden_size,
            num_hidden_layers=num_hidden_layers,
            num_attention_heads=num_attention_heads,
            intermediate_size=intermediate_size,
            layer_norm_eps=layer_norm_eps,
            image_size=image_size,
            patch_size=patch_size,
            norm_pix_loss=norm_pix_loss,
            **kwargs,
        )
        self.check()
        self.set_output_features_output_indices(out_features=out_features, out_indices=out_indices)

    @property
    def stage_names(self) -> list[str]:
        """Names of the outputs that a backbone has."""
        return ["stem", *(f"stage{block}" for block in range(1, self.num_hidden_layers + 1))]

    def to_dict(self) -> dict[str, Any]:
        stored = super().to_dict()
        if stored["out_indices"] == [self.num_hidden_layers]:  # the default, whatever the depth is changed to
            del stored["out_features"], stored["out_indices"]
        return stored

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> "RetFoundConfig":
        """Configuration called `name` in `PRESETS`, with `overrides` on top."""
        require("config_name", name, PRESETS)
        return cls(**{**PRESETS[name], **overrides})

    def check(self) -> None:
        """Raise BadArgumentError for sizes that no model can be built from."""
        for name in ("image_size", "patch_size"):
            if not isinstance(getattr(self, name), int):
                self._refuse(name, "must be an integer: images are square")
        factors = {"image_size": "patch_size", "hidden_size": "num_attention_heads"}
        for name, factor in (factors | {"decoder_hidden_size": "decoder_num_attention_heads"}).items():
            if getattr(self, name) % getattr(self, factor):
                self._refuse(name, f"is not a multiple of `{factor}={getattr(self, factor)}`")
        for name in ("hidden_size", "decoder_hidden_size"):
            if getattr(self, name) % 4:
                self._refuse(name, "is not a multiple of 4, as 2-D sin-cos positions need")
        if not 0 <= self.mask_ratio < 1:
            self._refuse("mask_ratio", SHARE)
        require("head_norm", self.head_norm, HEAD_NORMS)


def is_adapter(name_or_path: str | Path, **hub_options: Any) -> bool:
    """Whether a folder or Hub repository holds the configuration of a PEFT adapter instead of whole weights."""
    path = Path(name_or_path)
    if path.exists():
        return (path / ADAPTER_FILE).is_file() and not any(any(path.glob(pattern)) for pattern in WEIGHTS)
    try:
        return find_adapter_config_file(str(name_or_path), **hub_options) is not None
    except OSError:
        return False
