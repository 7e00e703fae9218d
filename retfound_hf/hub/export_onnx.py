"""An ONNX graph for any batch size, through PyTorch's exporter, checked in onnxruntime."""

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..runs.errors import missing_extra
from .exporting import check_equal, example, output_of

CHECKED_BATCHES = (1, 3)
OPSET = 18


class OneOutput(nn.Module):
    """Pixels in, one tensor out."""

    def __init__(self, model: PreTrainedModel, is_classifier: bool):
        super().__init__()
        self.model, self.is_classifier = model, is_classifier

    def forward(self, pixel_values: Tensor) -> Tensor:
        return output_of(self.model, self.is_classifier, pixel_values)


def write_onnx(model: PreTrainedModel, is_classifier: bool, size: int, folder: Path) -> float:
    """Write `model.onnx` with input `pixel_values` and output `logits` or `features`, any batch size.

    Returns:
        The largest difference between onnxruntime and PyTorch, over several batch sizes.

    Raises:
        RetFoundError: the extra is not installed, or the outputs differ.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  PyTorch's exporter asks for it
    except ImportError as error:
        raise missing_extra("onnxruntime with onnxscript", "onnx") from error
    path = folder / "model.onnx"
    output = "logits" if is_classifier else "features"
    network = OneOutput(model, is_classifier).eval()
    with torch.no_grad():
        torch.onnx.export(
            network,
            (example(2, size),),
            path,
            input_names=["pixel_values"],
            output_names=[output],
            dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch", min=1)}},
            opset_version=OPSET,
            dynamo=True,
            external_data=True,  # a file may hold 2 GB at most, and ViT-L comes near
            verbose=False,
        )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    differences = []
    for batch in CHECKED_BATCHES:
        pixels = example(batch, size)
        (found,) = session.run([output], {"pixel_values": pixels.numpy()})
        with torch.no_grad():
            differences.append(check_equal(network(pixels), torch.from_numpy(found), "ONNX"))
    return max(differences)
