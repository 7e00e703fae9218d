"""The command `explain`: what a classifier looks at, or what an autoencoder paints, for a set of images."""

import time
from collections.abc import Sequence
from pathlib import Path

from ..inference.loading import load_autoencoder, load_classifier, load_processor
from ..inference.processes import process_state
from ..runs.arguments import parse_arguments
from ..runs.files import refuse_existing, whole_folder
from ..runs.record import write_run_record
from .arguments import RECONSTRUCTION, ExplainArguments, ExplainForwardArguments
from .batches import GoodBatches
from .outputs import Outputs


def explain(arguments: ExplainArguments, options: ExplainForwardArguments) -> Path:
    """Explain the images and write the folder, whole or not at all.

    Returns:
        The folder: `pictures/`, `arrays/`, `maps.csv`, `maps.npz`, `contact_sheet.png`, `run.json`.

    Raises:
        RetFoundError: a model without classifier or decoder, images that are not there or cannot be read.
    """
    started = time.time()
    folder = Path(options.output_dir)
    refuse_existing(folder, options.overwrite_output_dir)
    name, paints = arguments.model_name_or_path, arguments.method == RECONSTRUCTION
    if paints:
        from .autoencoders import write_reconstructions as write
        from .painting import COLUMNS as titles
    else:
        from .classifiers import TITLES as titles
        from .classifiers import write_maps as write
    model = load_autoencoder(name) if paints else load_classifier(name)
    model = model.to(process_state().device)
    batches = GoodBatches(arguments, options, model.config, load_processor(name))
    with whole_folder(folder, options.overwrite_output_dir) as partial:
        outputs = Outputs(partial, arguments.sheet_images, titles)
        write(model, batches, outputs)
        outputs.close()
        write_run_record(
            partial,
            "explain",
            [arguments, options],
            seconds=round(time.time() - started, 1),
            images=len(outputs.rows),
            rejected_images=batches.rejected,
        )
    return folder


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments, explain, and say where the results are."""
    arguments, options = parse_arguments(
        ExplainArguments,
        ExplainForwardArguments,
        argv=argv,
        description="Relevance maps of a classifier, or reconstructions of an autoencoder, on the images themselves.",
    )
    folder = explain(arguments, options)
    print(f"Written to {folder}: pictures/, arrays/, maps.csv, maps.npz, contact_sheet.png")
