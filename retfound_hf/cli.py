"""Commands by name: `retfound NAME`, and `scripts/NAME.py` in the checkout."""

import importlib
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from .errors import require
from .options import run_command

# Name -> module, function, and one line for --help.
COMMANDS = {
    "convert_checkpoint": ("models.conversion", "main", "official .pth checkpoint -> model folder"),
    "fetch": ("hub.fetch", "main", "official weights from the Hub -> model folder"),
    "make_synthetic": ("data.synthetic_sets", "main", "synthetic labelled set of CFP or OCT images"),
    "make_registry": ("data.synthetic_sets", "make_registry_command", "synthetic registry: dated images and events"),
    "build_cohort": ("data.build_cohort", "main", "dates of images and events -> labelled cohort for a horizon"),
    "check_dataset": ("data.public_sets", "main", "check of a public data set's copy: complete, rightly named"),
    "prepare_images": ("data.prepare_images", "main", "folder, table or data set of images -> parquet shards"),
    "pretrain": ("pretraining.pretrain", "main", "shards -> model folder: self-supervised, on one or many devices"),
    "finetune": ("finetuning.finetune", "main", "model folder + labelled set -> classifier: full, lora or linear"),
    "study": ("study.runner", "main", "models x methods x data x fractions x seeds, from one file to a report"),
    "evaluate": ("inference.evaluate", "main", "fine-tuned folder on any labelled set"),
    "predict": ("inference.unlabelled", "main", "images without labels -> predictions.csv, with their quality"),
    "export": ("hub.export", "main", "model folder -> timm's state dict or an ONNX graph"),
    "publish": ("hub.publish", "main", "finished folder -> the Hub, with its card"),
    "embed": ("inference.embed", "main", "feature vectors of images"),
    "explain": ("explanation.explain", "main", "relevance maps of a classifier, reconstructions of an autoencoder"),
    "app": ("app.server", "main", "web page of a fine-tuned folder: one image, many images, relevance maps"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the first word names with the other words as its arguments; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print("usage: retfound COMMAND [arguments]\n\ncommands:")
        for name, (_, _, line) in COMMANDS.items():
            print(f"  {name:<20}{line}")
        print("\nretfound COMMAND --help lists the arguments of a command.")
        return 0
    if argv is None:
        sys.argv[0] = f"retfound {words[0]}"  # name of the program in `--help` and `run.json`
    return run_command(lambda rest: command(words[0])(rest), words[1:])


def command(name: str) -> Callable[[Sequence[str] | None], Any]:
    """Function of a command; it takes the command's arguments as words.

    Raises:
        BadArgumentError: no command of this name.
    """
    require("command", name, COMMANDS)
    module, function, _ = COMMANDS[name]
    found = getattr(importlib.import_module(f".{module}", __package__), function)
    return partial(found, publisher=_publisher) if name == "finetune" else found


def _publisher() -> Any:
    """The Hub's publisher for `push_to_hub` of `finetune`, a room below that of the Hub."""
    from .hub.publish import HubPublisher

    return HubPublisher()


if __name__ == "__main__":
    sys.exit(main())
