"""`retfound NAME`: the commands of `scripts/` for those who installed the package without the checkout."""

import importlib
import sys
from collections.abc import Sequence

from .errors import require
from .options import run_command

# name -> (module, function, one line for --help)
COMMANDS = {
    "convert_checkpoint": ("models.conversion", "main", "official .pth checkpoint -> model folder"),
    "fetch": ("hub.fetch", "main", "the official weights from the Hub -> model folder"),
    "make_synthetic": ("data.synthetic_sets", "main", "a synthetic labelled set of CFP or OCT images"),
    "make_registry": ("data.synthetic_sets", "make_registry_command", "a synthetic registry: dated images and events"),
    "build_cohort": ("data.build_cohort", "main", "dates of images and events -> labelled cohort for a horizon"),
    "check_dataset": ("data.public_sets", "main", "is a copy of a public data set whole and rightly named?"),
    "prepare_images": ("data.prepare_images", "main", "folder, table or data set of images -> parquet shards"),
    "pretrain": ("pretraining.pretrain", "main", "shards -> model folder: self-supervised, on one or many devices"),
    "finetune": ("hub.publish", "finetune", "model folder + labelled set -> classifier: full, lora or linear"),
    "study": ("study.runner", "main", "models x methods x data x label fractions x seeds, from one file to tables"),
    "evaluate": ("inference.evaluate", "main", "a fine-tuned folder on any labelled set"),
    "export": ("hub.export", "main", "a model folder -> timm's state dict or an ONNX graph"),
    "publish": ("hub.publish", "main", "a finished folder -> the Hub, with its card"),
    "embed": ("inference.embed", "main", "feature vectors of a folder of images"),
    "explain": ("explanation.explain", "main", "what a classifier looks at, what an autoencoder paints"),
    "app": ("app.server", "main", "a fine-tuned folder in a browser: one image, many, and where it looks"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the first word names; the rest are its arguments."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print("usage: retfound COMMAND [arguments]\n\ncommands:")
        for name, (_, _, line) in COMMANDS.items():
            print(f"  {name:<20}{line}")
        print("\nretfound COMMAND --help lists the arguments of a command.")
        return 0
    if argv is None:
        sys.argv[0] = f"retfound {words[0]}"  # what `--help` and `run.json` then call the program
    return run_command(lambda rest: command(words[0])(rest), words[1:])


def command(name: str):
    """The function behind a command's name; it takes the command's arguments as words."""
    require("command", name, COMMANDS)
    module, function, _ = COMMANDS[name]
    return getattr(importlib.import_module(f".{module}", __package__), function)


if __name__ == "__main__":
    sys.exit(main())
