"""Front door: what `import retfound_hf` offers, and how little it imports."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock
from tiny import save_classifier

import retfound_hf as rf
from retfound_hf.errors import OutputError
from retfound_hf.models.backbones import AUTO_CLASSES, SPLIT

SOURCE = Path(rf.__file__)


def names_for_type_checkers() -> dict[str, str]:
    """Name -> module of the imports under `if TYPE_CHECKING`."""
    blocks = [node for node in ast.parse(SOURCE.read_text(encoding="utf-8")).body if isinstance(node, ast.If)]
    imports = [node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: node.module for node in imports for alias in node.names}


def test_lazy_names_are_those_of_the_type_checker():
    assert names_for_type_checkers() == rf._LAZY


def test_every_export_exists():
    assert set(rf._LAZY) < set(rf.__all__) and len(set(rf.__all__)) == len(rf.__all__)
    for name in rf.__all__:
        assert getattr(rf, name) is not None and name in dir(rf)
    with pytest.raises(AttributeError):
        getattr(rf, "no_such_name")  # noqa: B009


@pytest.mark.parametrize("name", [name for name in rf.__all__ if name.islower()])
def test_functions_are_documented(name: str):
    function = getattr(rf, name)
    assert callable(function) and inspect.getdoc(function)
    if len(inspect.signature(function).parameters) > 2:
        assert "Args:" in inspect.getdoc(function)


LIBRARIES = {"torch", "torchvision", "transformers", "peft", "pandas", "scipy", "datasets"}
NOT_FOR_MODELS = {"sklearn", "matplotlib", "datasets", "transformers.trainer", "captum", "peft"}


def modules_after(code: str, *words: Path) -> set[str]:
    """Modules that a fresh process has imported after `code`, which finds `words` in `sys.argv[1:]`."""
    code = f"import sys\n{code}\nprint('imported:', *sys.modules)"
    run = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return set(run.stdout.rpartition("imported:")[2].split())


@pytest.mark.parametrize("code", ["import retfound_hf", "from retfound_hf.cli import main; main(['--help'])"])
def test_import_and_help_need_no_library(code):
    assert not LIBRARIES & modules_after(code)


@pytest.mark.parametrize("module", ["prepare_images", "synthetic_sets", "public_sets"])
def test_commands_without_a_model_import_no_torch(module):
    assert not {"torch", "transformers", "matplotlib"} & modules_after(f"import retfound_hf.data.{module}")


def test_a_model_is_loaded_without_what_trains_and_draws(tmp_path):
    folder = save_classifier(tmp_path / "classifier", ("a", "b"))
    loaded = modules_after("import retfound_hf as rf; rf.load_classifier(sys.argv[1])", folder)
    assert "torch" in loaded and not NOT_FOR_MODELS & loaded


# The Auto classes come before or after the package, and the image processor may be what is first asked for.
ASKED = """
import retfound_hf
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification
assert type(AutoImageProcessor.from_pretrained(sys.argv[1])) is retfound_hf.RetFoundImageProcessor
assert type(AutoModelForImageClassification.from_pretrained(sys.argv[1])) is retfound_hf.RetFoundForImageClassification
from peft import LoraConfig, get_peft_model
adapted = get_peft_model(AutoModel.from_pretrained(sys.argv[1]), LoraConfig())
assert adapted.peft_config["default"].target_modules == {"query", "value"}
"""


@pytest.mark.parametrize("before", ["", "from transformers import AutoModel; import peft"])
def test_auto_classes_know_the_models_whatever_is_imported_first(tmp_path, before):
    modules_after(before + ASKED, save_classifier(tmp_path / "classifier", ("a", "b")))


def test_names_for_transformers_are_those_of_the_classes():
    assert {kind.model_type: kind.__name__ for kind in AUTO_CLASSES} == {
        name: config for name, (config, _) in rf._MODEL_TYPES.items()
    }
    targets = {name: layers for name, (_, layers) in rf._MODEL_TYPES.items()}
    assert targets == {"retfound": ["query", "value"], "retfound_stock": [SPLIT["query"], SPLIT["value"]]}


NOWHERE = "nowhere"  # reading it would be another error
RUNS = {
    "finetune": lambda out: rf.finetune(NOWHERE, NOWHERE, output_dir=out),
    "evaluate": lambda out: rf.evaluate(NOWHERE, NOWHERE, output_dir=out),
    "predict": lambda out: rf.predict(NOWHERE, NOWHERE, output_dir=out),
    "embed": lambda out: rf.embed(NOWHERE, NOWHERE, output_dir=out),
    "explain": lambda out: rf.explain(NOWHERE, NOWHERE, output_dir=out),
    "prepare_images": lambda out: rf.prepare_images(NOWHERE, out, "cfp"),
    "pretrain": lambda out: rf.pretrain(NOWHERE, out, config_name="retfound-tiny"),
}  # fmt: skip


@pytest.mark.parametrize("command", RUNS)
def test_a_second_run_in_a_folder_ends_before_it_reads_anything(tmp_path, monkeypatch, command):
    monkeypatch.setattr("retfound_hf.files.PATIENCE", 0.1)
    with FileLock(tmp_path / ".out.lock"), pytest.raises(OutputError) as error:
        RUNS[command](tmp_path / "out")
    assert error.value.path == tmp_path / "out" and not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", RUNS)
@pytest.mark.parametrize("place", ["file", "file/out", "n" * 300])
def test_an_output_that_cannot_be_written_is_refused_before_anything_is_read(tmp_path, command, place):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(OutputError) as error:
        RUNS[command](tmp_path / place)
    assert error.value.path == tmp_path / place
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "kept"
