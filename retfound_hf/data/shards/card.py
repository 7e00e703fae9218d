"""The README of the shards (a dataset card, by which `datasets` finds them) and `dataset_info.json`."""

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...runs.files import whole_file
from .records import FOLDER
from .summary import Summary

if TYPE_CHECKING:
    import datasets

NAMES = {"cfp": "colour fundus photographs", "oct": "OCT B-scans"}
TEXT = """# {count:,} {name}, {size} x {size}

Prepared for pretraining with `retfound prepare_images`: {steps}. Nothing of the originals' metadata was kept.

```python
from datasets import load_dataset

images = load_dataset("{source}", split="train")  # add streaming=True to read without a copy
```

| column | holds |
|---|---|
| `image` | the prepared image, 8-bit RGB, {encoding} |
| `id` | where it comes from: its path within the source, or its `id` there |
| `hash` | BLAKE2b digest (128 bits) of the prepared pixels; equal for exact duplicates |
{kept}
| images | |
|---|---|
| in the source | {images:,} |
| in the shards | {count:,} ({megabytes:,.0f} MB, from {units} of up to {shard_size:,} source images) |
| rejected, see `rejected.csv` | {rejected:,} |
| exact duplicates, kept, see `duplicates.csv` | {duplicates:,} |

The terms of use and the protection of patients are those of the source. An `id` may tell more than you want to pass
on; look at some before you share the shards. `{records}/` holds the records by which a stopped run goes on; delete
it when the shards are complete and stay as they are.
"""


def write_card(out: Path, summary: Summary, features: "datasets.Features", options: dict[str, Any], name: str) -> None:
    """Write `README.md` and `dataset_info.json`, from which `load_dataset(out)` takes features and counts.

    Args:
        name: by which readers load the data set: its folder, or its id on the Hub.
    """
    import datasets
    from datasets.info import DatasetInfosDict
    from huggingface_hub import DatasetCardData

    split = datasets.SplitInfo("train", num_bytes=summary.image_bytes, num_examples=summary.written)
    info = datasets.DatasetInfo(
        features=features,
        splits=datasets.SplitDict({"train": split}),
        download_size=summary.shard_bytes,
        dataset_size=summary.image_bytes,
    )
    card = DatasetCardData(
        pretty_name=f"{summary.written:,} {NAMES[options['modality']]}",
        tags=["medical", "retina", options["modality"]],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": "data/*.parquet"}]}],
    )
    DatasetInfosDict({"default": info}).to_dataset_card_data(card)
    with whole_file(out / "README.md") as partial:
        text = f"---\n{card.to_yaml()}\n---\n\n{_text(summary, options, name)}"
        partial.write_text(text, encoding="utf-8")
    with whole_file(out / "dataset_info.json") as partial, tempfile.TemporaryDirectory() as folder:
        info.write_to_directory(folder, pretty_print=True)
        shutil.copyfile(Path(folder) / "dataset_info.json", partial)


def remove_card(out: Path) -> None:
    """Remove what `write_card` wrote, since `datasets` refuses a card of no images."""
    for name in ("README.md", "dataset_info.json"):
        (out / name).unlink(missing_ok=True)


def _text(summary: Summary, options: dict[str, Any], name: str) -> str:
    crop = "cropped to the field of view, padded to a square" if options["modality"] == "cfp" else "not cropped"
    return TEXT.format(
        count=summary.written,
        name=NAMES[options["modality"]],
        size=options["image_size"],
        steps=f"{crop}, resized (bicubic, antialiased)",
        source=name,
        encoding=f"JPEG of quality {options['quality']}, 4:4:4" if options["image_format"] == "jpeg" else "PNG",
        kept="".join(f"| `{name}` | as in the source |\n" for name in options["keep_columns"]),
        images=summary.images,
        megabytes=summary.shard_bytes / 1e6,
        units=f"{summary.units:,} unit{'s' if summary.units != 1 else ''}",
        shard_size=options["shard_size"],
        rejected=summary.rejected,
        duplicates=summary.duplicates,
        records=FOLDER,
    )
