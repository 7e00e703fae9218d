"""Names of transformers 5 that the models need, and their equivalents in transformers 4.57.

The package itself asks for transformers 5; the code that is published beside the weights runs with both.
"""

import torch

try:
    from transformers import PreTrainedConfig, initialization
    from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin
    from transformers.image_processing_backends import TorchvisionBackend
    from transformers.processing_utils import ImagesKwargs
except ImportError:
    from transformers import PretrainedConfig as PreTrainedConfig
    from transformers.image_processing_utils_fast import BaseImageProcessorFast
    from transformers.image_processing_utils_fast import DefaultFastImageProcessorKwargs as ImagesKwargs
    from transformers.utils import backbone_utils

    class BackboneConfigMixin(backbone_utils.BackboneConfigMixin):  # type: ignore[no-redef]
        def set_output_features_output_indices(self, out_features, out_indices):
            self._out_features, self._out_indices = backbone_utils.get_aligned_output_features_output_indices(
                out_features, out_indices, self.stage_names
            )

    class BackboneMixin(backbone_utils.BackboneMixin):  # type: ignore[no-redef]
        def __init__(self, config, **kwargs):
            super().__init__(config, **kwargs)
            self._init_backbone(config)

    class initialization:  # type: ignore[no-redef]
        """Initialisers; 4.57 itself skips the modules whose weights were loaded."""

        ones_, zeros_ = torch.nn.init.ones_, torch.nn.init.zeros_
        normal_, uniform_, trunc_normal_ = torch.nn.init.normal_, torch.nn.init.uniform_, torch.nn.init.trunc_normal_

        @staticmethod
        def copy_(tensor, other):
            return tensor.copy_(other)

    class TorchvisionBackend(BaseImageProcessorFast):  # type: ignore[no-redef]
        """Image processor of 4.57 with the methods that subclasses override in 5."""

        def _preprocess_image_like_inputs(
            self, images, *args, do_convert_rgb, input_data_format, device=None, interpolation=None, **kwargs
        ):
            options = {**kwargs, "do_convert_rgb": do_convert_rgb, "input_data_format": input_data_format}
            images = [
                self.process_image(image, device=device, **options) for image in self._prepare_images_structure(images)
            ]
            return self._preprocess(images, *args, resample=interpolation, **kwargs)

        def process_image(self, image, do_convert_rgb=None, input_data_format=None, device=None, **kwargs):
            return self._process_image(image, do_convert_rgb, input_data_format, device)

        def _preprocess(self, images, *args, resample=None, **kwargs):
            return super()._preprocess(images, *args, interpolation=resample, **kwargs)

        def resize(self, image, size, resample=None, antialias=True, **kwargs):
            return super().resize(image, size, interpolation=resample, antialias=antialias)


__all__ = [
    "BackboneConfigMixin", "BackboneMixin", "ImagesKwargs", "PreTrainedConfig", "TorchvisionBackend", "initialization",
]  # fmt: skip
