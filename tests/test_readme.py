"""README and guides: snippets run in their order, links resolve, and figures equal the recorded ones."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from loopback_hub import LoopbackHub
from PIL import Image
from torchvision.models.resnet import Bottleneck, ResNet

from retfound_hf.data.public_sets import recipe
from retfound_hf.study.config import read_settings

ROOT = Path(__file__).parents[1]
# In the order in which a reader goes through them: later pages use folders that earlier ones make.
ROOMS = (
    "models", "data", "finetuning", "inference", "evaluation", "explanation", "app", "pretraining", "study", "hub",
    "images",
)  # fmt: skip
PAGES = {
    "README": ROOT / "README.md",
    **{room: ROOT / "retfound_hf" / room / "README.md" for room in ROOMS},
    "own code": ROOT / "retfound_hf" / "models" / "IN_YOUR_OWN_CODE.md",
}
TEXTS = {name: path.read_text(encoding="utf-8") for name, path in PAGES.items()}
HUB = "<!-- run by the tests on a Hub of their own -->"
BLOCK = re.compile(
    rf"(?:<!-- not run by the tests: (?P<why>[^>]*?) -->\n|(?P<hub>{HUB})\n)?```(?P<language>\w+)\n(?P<code>.*?)```",
    re.S,
)
# Shortens the runs without changing what they do.
SHORTER = {
    "finetune.py": ["--num_train_epochs", "2", "--dataloader_num_workers", "0", "--per_device_eval_batch_size", "16"],
    "study-data/cfp": ["--num_patients", "40", "--image_size", "64"],
    "study.py": ["--dry_run"],  # tests/study runs small ones, and by --slow this one
    "make_registry.py": ["--num_patients", "80", "--image_size", "64"],
    "scripts/explain.py": ["--max_images", "2", "--dataloader_num_workers", "0"],
    "pretrain.py": ["--max_steps", "2", "--dataloader_num_workers", "1"],
}


def official_file(path: Path) -> None:
    """A small checkpoint in the official format, under the name of the official one."""
    torch.manual_seed(0)
    width, decoder, patch = 64, 32, 16
    state = {
        "cls_token": torch.randn(1, 1, width),
        "pos_embed": torch.randn(1, 197, width),
        "mask_token": torch.randn(1, 1, decoder),
        "decoder_pos_embed": torch.randn(1, 197, decoder),
        "patch_embed.proj.weight": torch.randn(width, 3, patch, patch) / 28,
        "patch_embed.proj.bias": torch.zeros(width),
    }

    def linear(name: str, out: int, into: int) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = torch.randn(out, into) / into**0.5, torch.zeros(out)

    def norm(name: str, size: int) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = torch.ones(size), torch.zeros(size)

    for prefix, size, depth in (("blocks", width, 2), ("decoder_blocks", decoder, 1)):
        for index in range(depth):
            block = f"{prefix}.{index}"
            norm(f"{block}.norm1", size)
            linear(f"{block}.attn.qkv", 3 * size, size)
            linear(f"{block}.attn.proj", size, size)
            norm(f"{block}.norm2", size)
            linear(f"{block}.mlp.fc1", 4 * size, size)
            linear(f"{block}.mlp.fc2", size, 4 * size)
    norm("norm", width)
    linear("decoder_embed", decoder, width)
    norm("decoder_norm", decoder)
    linear("decoder_pred", patch * patch * 3, decoder)
    path.parent.mkdir(parents=True)
    torch.save({"model": state}, path)


def swav_file(path: Path) -> None:
    """A ResNet of one block a stage, as SwAV's code saves its own."""
    torch.manual_seed(0)
    network = ResNet(Bottleneck, [1, 1, 1, 1])
    state = {f"module.{name}": tensor for name, tensor in network.state_dict().items() if "fc." not in name}
    torch.save({**state, "module.prototypes.weight": torch.zeros(3000, 128)}, path)


def table_of_patients(folder: Path) -> None:
    """`my-table.csv` with one class, two findings and an age per image."""
    rng = np.random.default_rng(0)
    rows = []
    for patient in range(24):
        for eye in ("R", "L"):
            name = f"table-images/{patient}-{eye}.png"
            (folder / name).parent.mkdir(exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(folder / name)
            findings = {"hypertension": patient % 2, "diabetes": int(patient % 3 == 0)}
            rows.append(
                {"image": name, "label": "ab"[patient % 2], "patient_id": patient, "age": 40.5 + patient, **findings}
            )
    pd.DataFrame(rows).to_csv(folder / "my-table.csv", index=False)


def copy_of_a_public_set(folder: Path) -> None:
    """IDRiD's layout under `data/`, with one image in each class folder."""
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for name in recipe("IDRiD").classes:
            path = folder / "data/IDRiD" / split / name / "image.png"
            path.parent.mkdir(parents=True)
            Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A folder as a reader has it: the checkout's scripts, the downloaded weights, an image and a table."""
    official_file(tmp_path / "YukunZhou" / "RETFound_mae_natureCFP")
    swav_file(tmp_path / "swav_800ep_pretrain.pth.tar")
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 400, 3), dtype=np.uint8)).save(
        tmp_path / "eye.jpg"
    )
    table_of_patients(tmp_path)
    copy_of_a_public_set(tmp_path)
    return tmp_path


def run(words: list[str], folder: Path, hub: LoopbackHub | None = None) -> None:
    """In the desk's folder, without a network but for the loopback Hub where one is given."""
    env = {**os.environ, "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    env |= hub.env(folder / "hub-home") if hub else {}
    done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{words}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


# Runs scripts, each as `python SCRIPT` would, and code, one after the other, but imports only once.
RUNNER = """
import json, runpy, sys
for words in json.loads(sys.argv[1]):
    if isinstance(words, str):
        exec(compile(words, "snippet", "exec"), {"__name__": "__main__"})
        continue
    sys.argv = words
    try:
        runpy.run_path(words[0], run_name="__main__")
    except SystemExit as exit:
        assert exit.code == 0, words
"""


def steps_of(text: str, desk: Path) -> Iterator[tuple[bool, list[str] | str, bool]]:
    """Runs of the snippets of a page: words of a script or code, whether on a Hub, and whether under a launcher."""
    for found in BLOCK.finditer(text):
        language, code, on_hub = found["language"], found["code"], bool(found["hub"])
        if found["why"]:
            continue
        if language == "yaml":
            (desk / "study.yaml").write_text(code)
            read_settings(desk / "study.yaml")
        elif language == "python":
            yield on_hub, code, False
        else:
            for line in code.replace("\\\n", " ").strip().splitlines():
                program, *words = shlex.split(line, comments=True)
                words += [word for script, flags in SHORTER.items() if script in line for word in flags]
                assert program == "python" or (program, words[0]) == ("accelerate", "launch"), line
                yield on_hub, words if program == "python" else words[1:], program != "python"


def test_snippets_run_in_order(desk: Path, hub: LoopbackHub):
    waiting: list[list[str] | str] = []

    def flush(on_hub: bool) -> None:
        if waiting:
            run([sys.executable, "-c", RUNNER, json.dumps(waiting)], desk, hub if on_hub else None)
            waiting.clear()

    last = False
    for text in TEXTS.values():
        for on_hub, step, launched in steps_of(text, desk):
            if on_hub != last or launched:
                flush(last)
            last = on_hub
            if launched:
                launcher = [sys.executable, "-m", "accelerate.commands.launch"]
                run([*launcher, *step], desk, hub if on_hub else None)
            else:
                waiting.append(step)
    flush(last)
    assert (desk / "my-evaluation" / "metrics.json").is_file() and (desk / "map.png").is_file()
    assert (desk / "my-features" / "features.parquet").is_file()
    assert (desk / "my-retfound" / "model.safetensors").is_file()
    assert (desk / "my-streamed" / "model.safetensors").is_file()
    assert set(hub.store.repos) == {
        ("dataset", "ORG/my-shards"), ("model", "ORG/my-classifier"), ("space", "ORG/my-classifier-page"),
        ("model", "ORG/retfound-cfp"), ("model", "ORG/my-adapter"),
    }  # fmt: skip
    assert set(hub.repo("ORG/my-classifier").tags) == {"v1"}


def test_only_set_up_and_the_gpu_are_left_out():
    reasons = [found["why"] for text in TEXTS.values() for found in BLOCK.finditer(text) if found["why"]]
    assert reasons == [
        "they are run by these",
        "needs a GPU",
        "serves until it is stopped",
        "needs 8 GPUs and the Hub",
        "needs SLURM",
        "some twenty small runs, in a slow test",
        "needs two GPUs",
    ]


def test_front_page_is_short_and_every_room_has_a_guide():
    assert len(TEXTS["README"].splitlines()) <= 200
    rooms = {path.parent.name for path in (ROOT / "retfound_hf").glob("*/__init__.py")}
    assert rooms == set(ROOMS)
    assert all(f"(retfound_hf/{room}/README.md)" in TEXTS["README"] for room in ROOMS)


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", PAGES)
def test_links_and_pictures_resolve(name: str):
    links = re.findall(r"\]\(([^)\s]+)\)|<img src=\"([^\"]+)\"", TEXTS[name])
    for target in (one or other for one, other in links):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        page = (PAGES[name].parent / path).resolve() if path else PAGES[name]
        assert page.exists(), target
        assert not anchor or anchor in anchors(page), target


def test_memory_table_equals_the_recorded_result():
    record = json.loads((ROOT / "scripts/benchmarks/results/finetune_memory.json").read_text())
    table = re.search(r"<!-- memory -->(.*?)<!-- /memory -->", TEXTS["finetuning"], re.S)[1]
    assert ("computed, not measured" in table) == record["how"].startswith("computed")
    rows = [
        [float(cell) for cell in re.findall(r"\d+\.\d\d", line)]
        for line in table.splitlines()
        if re.search(r"\d\.\d", line)
    ]
    assert rows == [list(row["gb"].values()) for row in record["rows"]]


def test_speed_of_shards_equals_the_recorded_result():
    record = json.loads((ROOT / "scripts/benchmarks/results/prepare_images.json").read_text())
    said = re.search(r"One\s+core prepares(.*?)Memory does not grow", TEXTS["data"], re.S)[1]
    rows = record["speed"]
    found = [f"{row['images_per_second_per_core']:.0f}" for row in rows]
    found += [str(value) for row in rows for name, value in row.items() if name.startswith("projected_hours")]
    assert re.findall(r"\*\*([\d.]+)\*\*", said) == found
    assert abs(record["memory"]["bytes_for_each_image_more"]) < 1000


def test_tables_of_few_images_equal_the_recorded_result():
    record = json.loads((ROOT / "scripts/benchmarks/results/small_data.json").read_text())
    said = [line for line in TEXTS["finetuning"].splitlines() if re.match(r"\| (0\.65|1) \|", line)]
    found = {decay: [row["mean"]["auroc"] for row in record["finetuning"] if row["layer_decay"] == decay]
             for decay in (0.65, 1.0)}  # fmt: skip
    assert [line.split("|")[2:-1] for line in said] == [[f" {auroc:.3f} " for auroc in row] for row in found.values()]
    rates = {f"{rate:.1e}".replace(".0e", "e").replace("e-0", "e-"): name for name, rate in record["rates"].items()}
    for rate, name in rates.items():
        line = next(line for line in TEXTS["pretraining"].splitlines() if re.match(rf"\| {rate}\b", line))
        cells = [cell.strip() for cell in line.split("|")[2:-1]]
        runs = {(run["images"], run["epochs"]): run for run in record["runs"] if run["rule"] == name}
        columns = [runs.get(key) for key in ((598, 20), (598, 100), (598, 400), (2425, 100))]
        assert cells == [f"{run['auroc_after']:.3f}, {run['loss']:.3f}" if run else "" for run in columns]


def test_maps_table_equals_the_recorded_result():
    record = json.loads((ROOT / "scripts/benchmarks/results/explain.json").read_text())
    table = re.search(r"<!-- explain -->(.*?)<!-- /explain -->", TEXTS["explanation"], re.S)[1]
    for method, cost in record["cost"]["retfound-cfp"].items():
        if method == "forward_seconds_per_image":
            continue
        cells = next(line for line in table.splitlines() if line.startswith(f"| `{method}`")).split("|")[2:-1]
        names = ("own_lesion", "other_lesion", "random_weights", "deletion", "insertion")
        for cell, name, digits in zip(cells, names, (1, 1, 1, 2, 2), strict=False):
            assert cell.strip() == " / ".join(f"{run[method][name]:.{digits}f}" for run in record["sanity"])
        assert cells[-1].strip() == f"{cost:.1f}"
    costs = record["cost"]["retfound-cfp"]
    said = re.search(r"forward pass of ViT-L, which is \*\*([\d.]+)\*\* s an image", TEXTS["explanation"])[1]
    assert said == f"{costs['forward_seconds_per_image']:.2f}"
    assert costs["relevance"] < costs["relprop"] < costs["integrated_gradients"]
    for run in record["sanity"]:
        methods = ("relevance", "relprop", "rollout", "integrated_gradients")
        # The sentences of the README about them.
        for method in methods:
            assert run[method]["deletion"] < run["random_order"]["deletion"]
            assert run[method]["insertion"] > run["random_order"]["insertion"]
            assert run[method]["own_lesion"] > 3 * run[method]["random_weights"]
        rows = [run[method] for method in methods]
        right, own = ([row[name] for row in rows] for name in ("own_above_other", "own_lesion"))
        assert right[0] > 0.9 and right[0] > right[1]
        assert max(own) == own[3]
        assert rows[2]["own_lesion"] == pytest.approx(rows[2]["other_lesion"])


def test_waits_for_the_web_page_equal_the_recorded_result():
    record = json.loads((ROOT / "scripts/benchmarks/results/app_latency.json").read_text())
    said = re.search(r"- \*\*Speed\.\*\* On two cores, with ViT-L(.*?)small steps", TEXTS["app"], re.S)[1]
    waits = [
        record[when][name]["waited"] for name in ("answer", "relevance") for when in ("later", "first_after_start")
    ]
    assert re.findall(r"\*\*([\d.]+)\*\*", said) == [f"{seconds:.2f}" for seconds in waits]
    assert record["threads"] == 2 and max(waits[:2]) < 3


def test_matrix_of_versions_equals_the_recorded_result():
    record = json.loads((ROOT / "scripts/benchmarks/results/load_matrix.json").read_text())
    lines = re.search(r"<!-- matrix -->(.*?)<!-- /matrix -->", TEXTS["hub"], re.S)[1].strip().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    said = {(row[0], way): cell for row in cells[2:] for way, cell in zip(cells[0][1:], row[1:], strict=True)}
    found = {
        (row["transformers"], row["way"]): "not allowed"
        if "left_out" in row
        else ("yes" if all(row[step] for step in record["steps"]) else "no")
        for row in record["rows"]
    }
    assert said == found


def test_what_the_example_study_took_is_what_was_recorded():
    record = json.loads((ROOT / "scripts/benchmarks/results/study_example.json").read_text())
    said = re.search(
        r"Its (\d+) jobs took (\d+) seconds of processor time, and\s+(\d+) minutes.*?ahead, by ([\d.]+) in AUROC "
        r"\(([\d.]+) to ([\d.]+)\), at another clinic by ([\d.]+)\s+\(([\d.]+) to ([\d.]+)\), both with p < 0.001",
        " ".join(TEXTS["study"].split()),
    )  # fmt: skip
    here, elsewhere, none = record["findings"]
    numbers = [one[name] for one in (here, elsewhere) for name in ("difference", "low", "high")]
    assert said.groups() == (
        str(record["jobs"]), f"{record['processor_seconds']:.0f}", f"{record['wall_seconds'] / 60:.0f}",
        *(f"{value:.2f}" for value in numbers),
    )  # fmt: skip
    assert max(here["p_holm"], elsewhere["p_holm"]) < 0.001
    assert [(one["data"], one["set"]) for one in (here, elsewhere)] == [
        ("Fundus diagnosis", "test"), ("Fundus diagnosis", "Other clinic")
    ]  # fmt: skip
    assert none["data"] == "Vision loss in three years" and none["low"] < 0 < none["high"]
