"""Reconstructions of a set of images, written one by one."""

from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image
from transformers import PreTrainedModel

from ..images.contact_sheet import contact_sheet
from .batches import GoodBatches
from .outputs import Outputs
from .painting import COLUMNS, paint, sheet_row


def write_reconstructions(model: PreTrainedModel, batches: GoodBatches, outputs: Outputs) -> None:
    """Hide patches of every image of `batches`, let the model paint them, and hand the pictures to `outputs`."""
    ratio, seed = batches.arguments.mask_ratio, batches.options.seed
    for pixels, items in batches:
        found = paint(model, pixels, [item.source.id for item in items], batches.processor, ratio, seed)
        for index, item in enumerate(items):
            row = sheet_row(found, index)
            hidden = found.mask[index]
            loss = float(found.error[index][hidden].mean()) if hidden.any() else 0.0
            error = found.error[index].cpu().numpy()
            outputs.add(
                item,
                {"loss": loss, "hidden": float(hidden.float().mean())},
                contact_sheet([row], titles=COLUMNS),
                {"error": error, "mask": hidden.cpu().numpy()},
                item.window_on_picture.place(error, item.picture.size),
                [_image(picture) for picture in row],
                f"loss {loss:.3f}",
            )


def _image(picture: Tensor) -> Image.Image:
    return to_pil_image(picture.cpu())
