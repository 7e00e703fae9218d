"""The published code: nothing of ours imported, every entry complete, the same numbers in every version."""

import ast
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from retfound_hf import RetFoundConfig, RetFoundImageProcessor
from retfound_hf.hub.publish import publish
from retfound_hf.hub.remote_code import auto_maps, code_files
from retfound_hf.models.loading import load_encoder

ALLOWED = {"torch", "torchvision", "transformers", "huggingface_hub", "numpy", "PIL", "scipy"}


REFERENCES = [
    reference
    for kind in ("retfound", "retfound_stock")
    for auto_map in auto_maps({"model_type": kind}, {"image_processor_type": "RetFoundImageProcessor"}).values()
    for reference in auto_map.values()
]


@pytest.fixture(scope="module")
def files() -> dict[str, str]:
    return code_files(REFERENCES)


@pytest.fixture
def module(files, tmp_path, monkeypatch):
    """Imports one of the files as transformers does: as a module of a package that holds them all."""
    package = tmp_path / "published_code"
    package.mkdir()
    (package / "__init__.py").touch()
    for name, text in files.items():
        (package / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield lambda name: importlib.import_module(f"published_code.{name}")
    for name in [name for name in sys.modules if name.startswith("published_code")]:
        del sys.modules[name]


def unguarded_imports(text: str) -> set[str]:
    """Packages that transformers asks for before it loads a file: all but those within a `try`."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.Try):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.split(".")[0])
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(text))
    return found


def test_nothing_but_what_every_user_has_is_imported(files):
    for name, text in files.items():
        assert unguarded_imports(text) <= ALLOWED | set(sys.stdlib_module_names), name
        imports = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)]
        assert all("retfound_hf" not in (node.module or "") for node in imports), name


def test_every_relative_import_is_flat_and_present(files):
    for name, text in files.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1 and f"{node.module}.py" in files, (name, node.module)


def test_each_entry_names_all_that_it_needs(files):
    """transformers 4.57 copies the files of a local folder no deeper than one import."""

    def direct(name: str) -> set[str]:
        nodes = [node for node in ast.walk(ast.parse(files[name])) if isinstance(node, ast.ImportFrom)]
        return {f"{node.module}.py" for node in nodes if node.level}

    for entry in {reference.split(".")[0] for reference in REFERENCES}:
        named = direct(f"{entry}.py")
        waiting, reached = list(named), set()
        while waiting:
            name = waiting.pop()
            if name not in reached:
                reached.add(name)
                waiting += direct(name)
        assert reached - {f"{entry}.py"} <= named, entry


def test_the_classes_are_others_with_the_same_outputs(module, new_classifier):
    own = new_classifier(problem_type="multi_label_classification", head_norm="double")
    remote_config = module("configuration_retfound").RetFoundConfig(**own.config.to_dict())
    remote = module("modeling_retfound").RetFoundForImageClassification(remote_config).eval()
    assert type(remote) is not type(own) and not isinstance(remote_config, RetFoundConfig)
    remote.load_state_dict(own.state_dict(), strict=True)
    pixels, labels = torch.randn(2, 3, 64, 64), torch.tensor([[1.0, 0, 1], [0, 0, 1]])
    with torch.no_grad():
        expected, found = own(pixels, labels=labels), remote(pixels, labels=labels)
    assert torch.equal(expected.logits, found.logits) and torch.equal(expected.loss, found.loss)


def test_the_image_processor_gives_the_same_pixels(module, image):
    own = RetFoundImageProcessor.for_image_size(64)
    remote = module("image_processing_retfound").RetFoundImageProcessor(**own.to_dict())
    assert type(remote) is not type(own)
    assert torch.equal(own(image, return_tensors="pt").pixel_values, remote(image, return_tensors="pt").pixel_values)


def test_the_auto_map_names_classes_of_the_files(module):
    assert len(REFERENCES) == 5 + 1 + 3 + 1
    for reference in REFERENCES:
        name, kind = reference.split(".")
        assert hasattr(module(name), kind)
    (own,) = auto_maps({"model_type": "retfound", "encoder_only": True}, {}).values()
    assert "AutoModelForPreTraining" not in own and own["AutoModel"] == "modeling_retfound.RetFoundModel"
    assert auto_maps({"model_type": "resnet"}, {"image_processor_type": "ViTImageProcessor"}) == {}


def test_a_wrapped_encoder_is_loaded_by_auto_model(stock_workshop, hub_here, image):
    """By its own code, in a process without the package."""
    publish(stock_workshop / "classifier", "org/wrapped")
    own = load_encoder(str(stock_workshop / "classifier"))
    pixels = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    code = """import sys, torch
from transformers import AutoModel
pixels = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(0))
features = AutoModel.from_pretrained("org/wrapped", trust_remote_code=True)(pixels).pooler_output
print(features.sum().item(), "retfound_hf" in sys.modules)"""
    env = {**os.environ, **hub_here.env(image.parent / "home", token=None)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    total, has_package = done.stdout.split()[-2:]
    with torch.no_grad():
        assert float(total) == pytest.approx(own(pixels).pooler_output.sum().item(), abs=1e-4)
    assert has_package == "False"


ROOT = Path(__file__).parents[2]
RECORD = ROOT / "scripts" / "benchmarks" / "results" / "load_matrix.json"


def check(record: dict) -> None:
    found = {(row["transformers"].split(".")[0], row["way"]) for row in record["rows"]}
    assert {("4", "stock class"), ("4", "code from the folder"), ("5", "package")} <= found
    for row in record["rows"]:
        if "left_out" not in row:
            assert [row[step] for step in record["steps"]] == [True] * 4, row
            assert row["difference"] <= 1e-5
    tried = [row for row in record["rows"] if "left_out" not in row]
    assert len({row["transformers"] for row in tried}) >= 3 and len(tried) >= 8


def test_the_recorded_matrix_is_green():
    check(json.loads(RECORD.read_text()))


@pytest.mark.slow
def test_the_matrix_comes_out_green_again(tmp_path):
    script = ROOT / "scripts" / "benchmarks" / "load_matrix.py"
    words = [sys.executable, str(script), "--output", str(tmp_path / "matrix.json")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=1800)
    if "No matching distribution" in done.stderr or "NewConnectionError" in done.stderr:
        pytest.skip("no package index here to take other versions of transformers from")
    assert done.returncode == 0, done.stderr[-3000:]
    check(json.loads((tmp_path / "matrix.json").read_text()))
