"""All images of `--data` in batches, with a progress bar, unreadable ones taken out."""

import logging
from collections.abc import Iterator, Sequence

from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedConfig

from ..data.checks import listed
from ..models.image_processing import RetFoundImageProcessor
from ..runs.errors import RetFoundError
from .arguments import ExplainArguments, ExplainForwardArguments
from .sources import Opened, Source, find_sources, opened_batches

logger = logging.getLogger(__name__)


class GoodBatches:
    """Batches of images that can be read, with a progress bar; the others are collected in `rejected` (id, reason).

    Raises:
        RetFoundError: an unreadable image, unless they are skipped; no image that can be read.
    """

    def __init__(
        self,
        arguments: ExplainArguments,
        options: ExplainForwardArguments,
        config: PreTrainedConfig,
        processor: RetFoundImageProcessor,
    ):
        self.arguments, self.options, self.config, self.processor = arguments, options, config, processor
        self.rejected: list[tuple[str, str]] = []

    def __iter__(self) -> Iterator[tuple[Tensor, list[Opened]]]:
        any_good = False
        with tqdm(desc="explain", unit="image") as bar:
            for sources in find_sources(self.arguments, self.config):
                bar.total = (bar.total or 0) + len(sources)
                for pixels, items in self._read(sources):
                    good = [index for index, item in enumerate(items) if not item.reason]
                    self._reject([item for item in items if item.reason])
                    if good:
                        any_good = True
                        yield pixels[good], [items[index] for index in good]
                    bar.update(len(items))
        if not any_good:
            reasons = listed(f"{name}: {reason}" for name, reason in self.rejected)
            raise RetFoundError(f"no image of {self.arguments.data} can be read ({reasons})")

    def _read(self, sources: Sequence[Source]) -> Iterator[tuple[Tensor, list[Opened]]]:
        return opened_batches(
            sources,
            self.processor,
            self.arguments.picture_size,
            self.options.per_device_eval_batch_size,
            self.options.dataloader_num_workers,
        )

    def _reject(self, items: Sequence[Opened]) -> None:
        for item in items:
            if self.options.on_bad_image == "error":
                raise RetFoundError(
                    f"image {item.source.id}: {item.reason}; repair or remove it, or pass --on_bad_image skip"
                )
            logger.warning("image %s is left out: %s", item.source.id, item.reason)
            self.rejected.append((item.source.id, item.reason))
