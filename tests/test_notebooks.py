"""Notebooks: plain cells in the package's own words; a slow test runs all of them on small weights and images."""

import ast
import configparser
import re
import shutil
from pathlib import Path

import pytest
from tiny import save_autoencoder

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "scripts" / "notebooks"
NAMES = sorted(path.name for path in FOLDER.glob("*.ipynb"))
nbformat = pytest.importorskip("nbformat")


def read(name: str):
    return nbformat.read(FOLDER / name, as_version=4)


def cells(notebook, tag: str) -> list:
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", ())]


def test_there_are_two_and_the_front_page_leads_to_them():
    assert NAMES == ["features_and_statistics.ipynb", "finetune_on_a_free_gpu.ipynb"]
    guide = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert all(f"({name})" in guide for name in NAMES)
    assert "scripts/notebooks/README.md" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_short_and_holds_the_outputs_of_a_whole_run(name: str):
    notebook = read(name)
    nbformat.validate(notebook)
    assert (FOLDER / name).stat().st_size < 400_000
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert sum(len(cell.source.splitlines()) for cell in code) < 130
    assert len(cells(notebook, "parameters")) == len(cells(notebook, "install")) == 1
    for cell in code:
        if cell not in cells(notebook, "install"):
            ast.parse(cell.source)
    counts = [cell.execution_count for cell in code]
    assert counts == list(range(1, len(counts) + 1)), "one run, from top to bottom"
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    pictures = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) >= 2 and max(map(len, pictures)) < 200_000
    assert not re.search(r"/(tmp|root|home)/", nbformat.writes(notebook))


@pytest.mark.parametrize("name", NAMES)
def test_the_badge_opens_the_project_where_its_address_is_known(name: str):
    """`url` in setup.cfg is the one place of the address; without one there is nothing that a badge could open."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    address = parser["metadata"].get("url", "")
    opened = re.findall(r"https://colab\.research\.google\.com/github/([^)\s]+)", read(name).cells[0].source)
    path = address.removeprefix("https://github.com/").strip("/")
    assert opened == ([f"{path}/blob/main/scripts/notebooks/{name}"] if address else [])


def parameters(name: str, folder: Path) -> str:
    """Small weights and images in place of the notebook's."""
    from retfound_hf.data.synthetic_sets import make_synthetic

    for seed, model in enumerate(("first", "second")):
        save_autoencoder(folder / model, seed, image_size=64)
    images = make_synthetic(folder / "images", num_patients=40, image_size=96)
    if name.startswith("features"):
        return 'PACKAGE, FIRST, SECOND, DATA = "", "first", "second", "images"\nGROUPS = {"age": [60], "sex": None}'
    shutil.make_archive(str(folder / "my-images"), "zip", folder, images.name)
    return 'PACKAGE, MODEL, DATA, EPOCHS, REPO = "", "first", "my-images.zip", 1, None'


def assigned(source: str) -> set[str]:
    return {
        node.id
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_cell_runs(name: str, tmp_path: Path):
    record_outputs = pytest.importorskip("record_outputs")
    pytest.importorskip("ipykernel")
    notebook, settings = read(name), parameters(name, tmp_path)
    assert assigned(record_outputs.tagged(notebook, "parameters").source) == assigned(settings)
    record_outputs.execute(notebook, settings, tmp_path)
    assert [cell.source for cell in notebook.cells] == [cell.source for cell in read(name).cells]
    if name.startswith("features"):
        assert (tmp_path / "head-of-second" / "metrics.json").is_file()
    else:
        assert (tmp_path / "my-full" / "model.safetensors").is_file()
        assert (tmp_path / "my-lora" / "adapter_model.safetensors").is_file()
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
        sent = "".join(output.text for output in outputs if output.get("name") == "stdout").split("would be sent:")[1]
        assert "model.safetensors" in sent and "predictions.csv" not in sent
