"""Wheel and metadata: every room and data file, one version, the stated Pythons; a slow test installs and runs it."""

import ast
import configparser
import fnmatch
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml
from tiny import save_noise

import retfound_hf
from retfound_hf.cli import COMMANDS
from retfound_hf.models.cards import write_card
from retfound_hf.record import versions

ROOT = Path(__file__).parents[1]
GUIDES = {"README.md", "IN_YOUR_OWN_CODE.md"}  # for readers of the repository
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


def settings() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().splitlines()]


def own_files() -> list[Path]:
    """Files that belong to the project, as git knows them, without those that it ignores."""
    words = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    found = subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    return sorted({ROOT / name for name in found if (ROOT / name).is_file()})


def packaged() -> dict[str, list[str]]:
    """Files by package that a wheel is to hold: the rooms' code and data, and the templates of cards."""
    rooms = {path.parent for path in (ROOT / "retfound_hf").rglob("__init__.py")} | {ROOT / "model_cards"}
    found: dict[str, list[str]] = {}
    for path in own_files():
        room = next((parent for parent in path.parents if parent in rooms), None)
        if room is None or (path.name in GUIDES and path.parent == room and room.name != "model_cards"):
            continue
        name = ".".join(room.relative_to(ROOT).parts).replace("model_cards", "retfound_hf.model_cards")
        found.setdefault(name, []).append(path.relative_to(room).as_posix())
    return found


def test_every_package_is_listed():
    assert sorted(lines(settings()["options"]["packages"])) == sorted(packaged())


def test_every_data_file_is_listed_and_no_pattern_is_in_vain():
    patterns = {name: re.split(r",\s*", text) for name, text in settings()["options.package_data"].items()}
    for name, files in packaged().items():
        data = {file for file in files if not file.endswith(".py")}
        for pattern in patterns.pop(name, []):
            # A star stays within one folder, as in setuptools.
            taken = {f for f in data if fnmatch.fnmatch(f, pattern) and f.count("/") == pattern.count("/")}
            assert taken, (name, pattern)
            data -= taken
        assert not data, (name, data)
    assert not patterns


def test_version_is_said_once(tmp_path):
    """The literal is in `record.py`; a citation has to be a plain file, and is compared."""
    version = retfound_hf.__version__
    assert settings()["metadata"]["version"] == "attr: retfound_hf.record.__version__"
    assert versions()["retfound-hf"] == version
    card = write_card(tmp_path, "starting_weights", {}, **dict.fromkeys(placeholders("starting_weights"), "x"))
    assert f"retfound_hf {version}" in card.read_text(encoding="utf-8")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == version and citation["license"] == settings()["metadata"]["license"]
    released = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert released[:2] == ["Unreleased", version]
    saying = [path for path in own_files() if path.suffix == ".py" and f'"{version}"' in path.read_text("utf-8")]
    assert saying == [ROOT / "retfound_hf" / "record.py"]


def placeholders(template: str) -> set[str]:
    import jinja2

    parsed = jinja2.Environment().parse((ROOT / "model_cards" / f"{template}.md").read_text(encoding="utf-8"))
    return {node.name for node in parsed.find_all(jinja2.nodes.Name)} - {"folder_name", "card_data"}


def test_stated_pythons_agree():
    said = settings()
    assert [
        line.rpartition(" ")[2] for line in lines(said["metadata"]["classifiers"]) if ":: Python :: 3." in line
    ] == [*PYTHONS]
    assert said["options"]["python_requires"] == f">={PYTHONS[0]}"


def test_sources_are_in_the_oldest_grammar():
    oldest = tuple(map(int, PYTHONS[0].split(".")))
    for path in own_files():
        if path.suffix == ".py" and not path.is_relative_to(ROOT / "tests"):
            ast.parse(path.read_text(encoding="utf-8"), str(path), feature_version=oldest)


def test_no_file_names_a_machine_or_a_registry():
    """Public files speak of the project alone."""
    forbidden = ("/home/", "/root/", "/tmp/", "localhost:", "file://")
    texts = [
        *ROOT.glob("*.md"),
        *ROOT.glob("retfound_hf/*/README.md"),
        *ROOT.glob("scripts/**/*"),
        *ROOT.glob("model_cards/*"),
        ROOT / "setup.cfg",
    ]
    for path in texts:
        if path.is_file() and path.suffix not in (".pyc", ".png"):
            text = path.read_text(encoding="utf-8")
            assert not [word for word in forbidden if word in text], path


def run(words: list[str | Path], folder: Path, **env: str) -> str:
    """Output of a command that runs in `folder`, without the checkout on its path."""
    outside = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(word) for word in words], cwd=folder, env={**outside, **env}, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, f"{words}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the archive of the sources, and that from the project's own files, as `python -m build` does."""
    place = tmp_path_factory.mktemp("build")
    for path in own_files():
        copy = place / "copy" / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    build = "import sys; from setuptools import build_meta; print(build_meta.build_{}(sys.argv[1]))"
    run([sys.executable, "-c", build.format("sdist"), place], place / "copy")
    (archive,) = place.glob("*.tar.gz")
    with tarfile.open(archive) as sources:
        sources.extractall(place, filter="data")
        assert not [name for name in sources.getnames() if re.search(r"/(tests|scripts)/", name)]
    run([sys.executable, "-c", build.format("wheel"), place], place / archive.name.removesuffix(".tar.gz"))
    (built,) = place.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def clean(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Programs of a new environment with the wheel, far from the checkout.

    Its other packages are those of the environment at hand, by a path file, which spares 6 GB. Path files in there,
    such as that of an editable installation, are not followed.
    """
    place = tmp_path_factory.mktemp("clean")
    run([sys.executable, "-m", "venv", place / "env"], place)
    programs = place / "env" / "bin"
    script = "import sysconfig; print(sysconfig.get_path('purelib'))"
    there = Path(run([programs / "python", "-c", script], place).strip())
    here = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    run([programs / "python", "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel], place)
    (there / "dependencies.pth").write_text("".join(f"{path}\n" for path in here))
    found = run([programs / "python", "-c", "import retfound_hf; print(retfound_hf.__file__)"], place).strip()
    assert Path(found).is_relative_to(there)
    return programs


def installed_version(python: Path, folder: Path) -> str:
    return run([python, "-c", "from importlib.metadata import version; print(version('retfound-hf'))"], folder).strip()


@pytest.mark.slow
def test_wheel_holds_the_package_and_nothing_else(wheel: Path):
    with zipfile.ZipFile(wheel) as file:
        names, sizes = file.namelist(), {info.filename: info.file_size for info in file.infolist()}
    inside = {name for name in names if ".dist-info/" not in name}
    assert inside == {f"{room.replace('.', '/')}/{path}" for room, paths in packaged().items() for path in paths}
    # Said again in words, in case that a list of ours grows by mistake.
    parts = {part for name in names for part in name.split("/")}
    assert not parts & {"tests", "scripts", "benchmarks", "results", "notebooks", "__pycache__", ".ci", "build"}
    assert not [name for name in names if re.search(r"\.(pyc|png|jpe?g|ipynb|log|jsonl|parquet|pth?|zip)$", name)]
    assert "retfound_hf/py.typed" in inside and "retfound_hf/model_cards/retfound-cfp.md" in inside
    assert sum(size for name, size in sizes.items() if not name.endswith(".safetensors")) < 3_000_000
    assert {name.rpartition("/")[2] for name in names if ".dist-info/" in name} >= {"LICENSE", "entry_points.txt"}
    assert wheel.name == f"retfound_hf-{retfound_hf.__version__}-py3-none-any.whl"


# Prints the help of the commands that it is given; one process for all, since a start costs seconds.
EVERY_HELP = """
import sys
from retfound_hf import cli
for name in sys.argv[1:]:
    try:
        cli.main([name, "--help"])
    except SystemExit as done:
        assert done.code == 0, name
"""


@pytest.mark.slow
def test_every_command_runs_from_the_wheel(clean: Path, tmp_path: Path):
    env = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg"}

    def retfound(*words: str) -> str:
        return run([clean / "retfound", *words], tmp_path, **env)

    listed = retfound("--help")
    assert all(name in listed for name in COMMANDS)
    assert run([clean / "python", "-c", EVERY_HELP, *COMMANDS], tmp_path, **env).count("usage: ") >= len(COMMANDS)

    retfound("make_synthetic", "images", "--modality", "cfp", "--num_patients", "30", "--image_size", "64")
    quick = ("--cache_dir", "cache", "--data", "images")
    fit = ("--config_name", "retfound-tiny", "--image_size", "64", "--method", "linear")
    retfound("finetune", *fit, *quick, "--output_dir", "classifier")
    retfound("evaluate", "--model_name_or_path", "classifier", *quick, "--output_dir", "evaluation")
    save_noise(tmp_path / "eye.png", size=(64, 64))
    retfound("explain", "--model_name_or_path", "classifier", "--data", "eye.png", "--output_dir", "maps")
    version = f"retfound_hf {retfound_hf.__version__}"
    assert version in (tmp_path / "classifier" / "README.md").read_text(encoding="utf-8")
    for name in ("classifier/report.html", "evaluation/metrics.json", "maps"):
        assert (tmp_path / name).exists(), name


def interpreters() -> dict[str, str]:
    """Programs of the stated Pythons that are at hand, on the path or kept by pyenv or uv."""
    kept = [Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"]
    kept += [Path(os.environ.get("UV_PYTHON_INSTALL_DIR", Path.home() / ".local/share/uv/python"))]
    found = {}
    for version in PYTHONS:
        tried = [
            shutil.which(f"python{version}"),
            *(p for place in kept for p in place.glob(f"*/bin/python{version}")),
        ]
        for program in filter(None, tried):
            words = [str(program), "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
            done = subprocess.run(words, capture_output=True, text=True)
            if done.stdout.strip() == version:
                found[version] = str(program)
                break
    return found


@pytest.mark.slow
@pytest.mark.parametrize("version", PYTHONS)
def test_wheel_installs_and_compiles_under_each_python(version: str, wheel: Path, tmp_path: Path):
    """Without its dependencies, 6 GB for each: pip accepts it, every module compiles, the lowest floor runs."""
    program = interpreters().get(version)
    if program is None:
        pytest.skip(f"no Python {version} at hand")
    run([program, "-m", "venv", tmp_path / "env"], tmp_path)
    python = tmp_path / "env" / "bin" / "python"
    run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile", wheel], tmp_path)
    (place,) = (tmp_path / "env" / "lib").glob("*/site-packages/retfound_hf")
    run([python, "-W", "error", "-m", "compileall", "-q", place], tmp_path)
    # The package's own front imports PyTorch, so its lowest modules are taken as a package of their own.
    front = place.parent / "front"
    front.mkdir()
    for name in ("errors", "files", "processes", "record", "vocabulary"):
        shutil.copy(place / f"{name}.py", front)
    code = "from front import errors, files, processes, record, vocabulary; print(record.versions()['retfound-hf'])"
    assert run([python, "-c", code], tmp_path).strip() == retfound_hf.__version__


@pytest.mark.slow
def test_wheelhouse_installs_without_a_network(tmp_path: Path):
    """By its own two lines, but without the dependencies, 4 GB."""
    offline = ("--no-deps", "--no-index", "--no-build-isolation")
    words = ["bash", ROOT / "scripts" / "make_wheelhouse.sh", "house", "app,dicom", *offline]
    said = run(words, tmp_path, PYTHON=sys.executable)
    assert [path.name for path in (tmp_path / "house").iterdir()] == [
        f"retfound_hf-{retfound_hf.__version__}-py3-none-any.whl"
    ]
    make, install = (line.strip() for line in said.splitlines()[-2:])
    assert "'retfound-hf[app,dicom]'" in install
    run(["bash", "-euc", f"{make.replace('python3', sys.executable)}\n{install} --no-deps"], tmp_path)
    assert installed_version(tmp_path / "retfound" / "bin" / "python", tmp_path) == retfound_hf.__version__


def instructions() -> list[tuple[str, str]]:
    """Instructions of the Dockerfile, and what each is given."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(encoding="utf-8"), flags=re.M).replace("\\\n", " ")
    return [
        (name, rest.strip()) for name, _, rest in (line.partition(" ") for line in text.splitlines() if line.strip())
    ]


def test_the_container_runs_the_command_as_a_user_without_rights():
    last = dict(instructions())
    assert last["ENTRYPOINT"] == '["retfound"]' and last["USER"] not in ("0", "root")
    names = [name for name, _ in instructions()]
    assert names.index("USER") > max(index for index, name in enumerate(names) if name == "RUN")
    assert [rest for name, rest in instructions() if name == "COPY"] == [". /src"]


def test_the_dockerfile_has_no_fault_that_its_linter_knows():
    linter = shutil.which("hadolint") or Path(sys.executable).with_name("hadolint")
    if not Path(linter).exists():
        pytest.skip("needs hadolint")
    run([linter, "Dockerfile"], ROOT)


@pytest.mark.slow
@pytest.mark.parametrize(("device", "index"), [("cpu", ["--index-url"]), ("cuda", []), ("tpu", None)])
def test_the_steps_of_the_container_in_order(device: str, index: list[str] | None, tmp_path: Path):
    """In a new environment, on the files that .dockerignore lets through; what pip would fetch is written down."""
    kept = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert kept[1] == "*" and "**/__pycache__" in kept
    for name in (line.removeprefix("!") for line in kept if line.startswith("!")):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        (tmp_path / "src").mkdir(exist_ok=True)
        copy(ROOT / name, tmp_path / "src" / name)
    run([sys.executable, "-m", "venv", "env"], tmp_path)
    pip = """pip() {
        case "$*" in *torch*) echo "$@" >> fetched; return ;; esac
        "$PYTHON" -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir built "${@: -1}" &&
            env/bin/pip install --quiet --no-deps --no-index built/*.whl
    }
    useradd() { mkdir -p home/retfound; }
    """
    steps = [rest for name, rest in instructions() if name == "RUN"]
    steps = [f"{{ {step}; }} || exit" for step in steps]
    here = "\n".join(steps).replace("/src", f"{tmp_path}/src").replace("/home", f"{tmp_path}/home")
    words = ["bash", "-euc", pip + here]
    env = {"DEVICE": device, "EXTRAS": "app,dicom", "PYTHON": sys.executable}
    if index is None:
        with pytest.raises(AssertionError, match="accepted: cpu, cuda"):
            run(words, tmp_path, **env)
        return
    run(words, tmp_path, **env)
    fetched = (tmp_path / "fetched").read_text().split()
    assert {"install", "torch", "torchvision", *index} <= set(fetched) and ("--index-url" in fetched) == bool(index)
    assert not (tmp_path / "src").exists()
    assert installed_version(tmp_path / "env" / "bin" / "python", tmp_path) == retfound_hf.__version__
