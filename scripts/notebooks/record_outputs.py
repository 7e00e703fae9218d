"""Run the notebooks on the small weights of the package and synthetic images, on a CPU, and store their outputs.

    python scripts/notebooks/record_outputs.py [NAME...]

The first code cell, which holds the settings, is run with others and stored as it is; all else runs as it stands.
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SETTINGS = {
    "finetune_on_a_free_gpu": 'PACKAGE, MODEL, DATA, EPOCHS, REPO = "", "retfound-mini", None, 40, None',
    "features_and_statistics": (
        'PACKAGE, FIRST, SECOND, DATA = "", "retfound-mini", "untrained", None\n'
        'GROUPS = {"age": [50, 65], "sex": None, "camera": None}'
    ),
}


def tagged(notebook: Any, tag: str) -> Any:
    """The cell that bears a tag."""
    (cell,) = (cell for cell in notebook.cells if tag in cell.metadata.get("tags", ()))
    return cell


def execute(notebook: Any, settings: str, folder: Path, timeout: int = 1800) -> None:
    """Run all cells in `folder` by this interpreter and this checkout, with `settings` in place of the first ones.

    The package is here, so that nothing is installed. Of what cells print, notes and progress bars are left out.
    """
    kernel = folder / "jupyter" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    words = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps({"argv": words, "display_name": "Python 3", "language": "python"}))
    env = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}  # a kernel has one of its own
    env |= {"PYTHONPATH": str(ROOT), "JUPYTER_PATH": str(folder / "jupyter"), "HF_HUB_OFFLINE": "1"}
    given, install = tagged(notebook, "parameters"), tagged(notebook, "install")
    stored = given.source, install.source
    given.source, install.source = settings, "pass"
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(env)  # the client looks for kernels by its own environment
    try:
        NotebookClient(notebook, timeout=timeout, resources={"metadata": {"path": str(folder)}}).execute()
    finally:
        os.environ.clear()
        os.environ.update(before)
        given.source, install.source = stored
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]


def make_untrained(folder: Path) -> None:
    """Folder of the network of `retfound-mini` with random weights, the same at each run."""
    from transformers import set_seed

    import retfound_hf as rf

    set_seed(0)
    config = rf.RetFoundConfig.from_preset("retfound-mini", modality="cfp")
    rf.RetFoundForPreTraining(config).save_pretrained(folder)
    rf.RetFoundImageProcessor.for_image_size(config.image_size).save_pretrained(folder)


def main() -> None:
    for name in sys.argv[1:] or SETTINGS:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            make_untrained(folder / "untrained")
            notebook = nbformat.read(HERE / f"{name}.ipynb", as_version=4)
            execute(notebook, SETTINGS[name], folder)
            nbformat.write(notebook, HERE / f"{name}.ipynb")


if __name__ == "__main__":
    main()
