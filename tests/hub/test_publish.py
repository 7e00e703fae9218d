"""Published to a Hub on loopback by the real client, loaded by name elsewhere: fresh cache, fresh process, offline."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageClassification

from retfound_hf import RetFoundForImageClassification, RetFoundForPreTraining, RetFoundImageProcessor
from retfound_hf.cli import command
from retfound_hf.errors import BadArgumentError, HubAccessError
from retfound_hf.evaluation.report import ReportArguments, read_points
from retfound_hf.hub.publish import main, publish
from retfound_hf.models.loading import load_classifier
from retfound_hf.options import run_command

# Without the package: every class by name, from what the Hub gives.
STRANGER = """
import json, sys
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor, AutoModel, AutoModelForImageClassification, AutoModelForPreTraining, ViTMAEForPreTraining,
    pipeline,
)
remote = {"trust_remote_code": True}
image = Image.open(sys.argv[1])
processor = AutoImageProcessor.from_pretrained("org/classifier", **remote)
pixels = processor(image, return_tensors="pt").pixel_values
noise = torch.rand(1, 16, generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    found = {
        "pixels": pixels.double().sum().item(),
        "logits": AutoModelForImageClassification.from_pretrained("org/classifier", **remote)(pixels).logits.tolist(),
        "features": AutoModel.from_pretrained("org/base", **remote)(pixels).pooler_output.tolist(),
        "loss": AutoModelForPreTraining.from_pretrained("org/base", **remote)(pixels, noise=noise).loss.item(),
        "stock": ViTMAEForPreTraining.from_pretrained("org/base")(pixels, noise=noise).loss.item(),
    }
classify = pipeline("image-classification", model="org/classifier", **remote)
found["pipeline"] = {answer["label"]: answer["score"] for answer in classify(image)}
found["package"] = "retfound_hf" in sys.modules
print(json.dumps(found))
"""


def run(code: str, env: dict[str, str], *words: str) -> dict:
    done = subprocess.run(
        [sys.executable, "-c", code, *words], env={**os.environ, **env}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def published(hub_here, workshop):
    """`org/base` and `org/classifier` on the Hub."""
    for name in ("base", "classifier"):
        publish(workshop / name, f"org/{name}")
    return hub_here


def test_thresholds_come_with_the_model(published, workshop):
    names, report = ("normal", "stage 3"), ReportArguments()
    chosen = read_points(workshop / "classifier", names, report)
    assert chosen and read_points("org/classifier", names, report) == chosen
    assert read_points("org/base", names, report) == []


def test_load_by_name_in_a_fresh_process_then_offline(published, workshop, image, tmp_path):
    pixels = RetFoundImageProcessor.from_pretrained(workshop / "classifier")(Image.open(image), return_tensors="pt")
    pixels = pixels.pixel_values
    noise = torch.rand(1, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        classifier = RetFoundForImageClassification.from_pretrained(workshop / "classifier").eval()
        autoencoder = RetFoundForPreTraining.from_pretrained(workshop / "base").eval()
        logits, loss = classifier(pixels).logits, autoencoder(pixels, noise=noise).loss.item()
        features = autoencoder.vit(pixels).pooler_output
    home = tmp_path / "elsewhere"
    found = run(STRANGER, published.env(home, token=None), str(image))
    assert found["package"] is False
    assert found["pixels"] == pytest.approx(pixels.double().sum().item(), abs=1e-9)
    torch.testing.assert_close(torch.tensor(found["logits"]), logits, atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.tensor(found["features"]), features, atol=1e-5, rtol=0)
    assert found["loss"] == pytest.approx(loss, abs=1e-6) and found["stock"] == pytest.approx(loss, abs=1e-6)
    probabilities = logits.softmax(-1)[0].tolist()
    names = [classifier.config.id2label[index] for index in range(2)]
    assert found["pipeline"] == pytest.approx(dict(zip(names, probabilities, strict=True)), abs=1e-6)
    asked = len(published.requests)
    assert run(STRANGER, published.env(home, token=None, offline=True), str(image)) == found
    assert len(published.requests) == asked


def test_saved_by_the_package_it_no_longer_points_at_code(published, tmp_path):
    RetFoundForImageClassification.from_pretrained("org/classifier").save_pretrained(tmp_path / "again")
    assert "auto_map" not in json.loads((tmp_path / "again" / "config.json").read_text())


def test_one_commit_a_tag_and_the_address(hub_here, workshop, capsys):
    words = [str(workshop / "classifier"), "--repo_id", "org/mine", "--private", "--revision", "v1"]
    assert run_command(main, words) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{hub_here.url}/org/mine/tree/v1"
    repo = hub_here.repo("org/mine")
    assert repo.private and len(repo.commits) == 2 and repo.tags == {"v1": repo.commits[-1].oid}
    card = repo.at("v1").files["README.md"].content.decode()
    assert 'model="org/mine"' in card and 'model="classifier"' not in card
    assert not {"run.json", "predictions.csv"} & set(repo.at("v1").files)
    assert run_command(main, words) == 2
    assert "org/mine has a version v1 already" in capsys.readouterr().err
    assert len(repo.commits) == 2


def test_push_to_hub_of_finetune_gives_the_same(hub_here, workshop, tmp_path, capsys):
    words = ["--model_name_or_path", str(workshop / "base"), "--data", str(workshop / "images"), "--method", "linear"]
    words += ["--dataloader_num_workers", "0", "--output_dir", str(tmp_path / "pushed"), "--push_to_hub", "true"]
    assert run_command(command("finetune"), [*words, "--hub_private_repo", "true"]) == 0
    repo = hub_here.repo("writer/pushed")
    assert repo.private and len(repo.commits) == 2
    assert capsys.readouterr().out.splitlines()[-1] == f"{hub_here.url}/writer/pushed"
    publish(tmp_path / "pushed", "org/same")
    pushed, published = repo.at("main").files, hub_here.repo("org/same").at("main").files
    assert set(pushed) == set(published)
    assert [name for name in pushed if pushed[name] != published[name]] == ["README.md"]  # it holds its own name


def test_push_to_hub_of_trainer_itself_gives_the_same_folder(hub_here, workshop, tmp_path):
    words = ["--model_name_or_path", str(workshop / "base"), "--data", str(workshop / "images")]
    words += ["--dataloader_num_workers", "0", "--output_dir", str(tmp_path / "pushed"), "--push_to_hub", "true"]
    words += ["--num_train_epochs", "1", "--disable_tqdm", "true", "--hub_model_id", "org/full"]
    assert run_command(command("finetune"), words) == 0
    repo = hub_here.repo("org/full")
    assert len(repo.commits) == 2
    assert not [name for name in repo.at("main").files if "checkpoint" in name or name.endswith(".bin")]
    assert {"metrics.json", "modeling_retfound.py", "README.md"} <= set(repo.at("main").files)


def test_push_to_hub_is_refused_before_training(hub_here, workshop, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "")
    words = ["--model_name_or_path", str(workshop / "base"), "--data", str(workshop / "images")]
    assert (
        run_command(command("finetune"), [*words, "--output_dir", str(tmp_path / "pushed"), "--push_to_hub", "true"])
        == 2
    )
    assert "there is no token for the run; log in with" in capsys.readouterr().err
    assert not (tmp_path / "pushed").exists()


def test_push_to_hub_uses_the_token_that_it_is_given(hub_here, workshop, tmp_path, monkeypatch, capsys):
    words = ["--model_name_or_path", str(workshop / "base"), "--data", str(workshop / "images"), "--method", "linear"]
    words += ["--dataloader_num_workers", "0", "--output_dir", str(tmp_path / "pushed"), "--push_to_hub", "true"]
    monkeypatch.setenv("HF_TOKEN", "")
    assert run_command(command("finetune"), [*words, "--hub_token", "hf_wrong"]) == 2
    assert "the token is not valid" in capsys.readouterr().err and not (tmp_path / "pushed").exists()
    assert run_command(command("finetune"), [*words, "--hub_token", "hf_writer"]) == 0
    assert "metrics.json" in hub_here.repo("writer/pushed").at("main").files
    assert "hf_writer" not in (tmp_path / "pushed" / "run.json").read_text()


def test_the_page_goes_up_as_a_space(hub_here, workshop, capsys):
    assert run_command(main, [str(workshop / "classifier"), "--repo_id", "org/mine", "--space"]) == 0
    space = hub_here.repo("org/mine-page", "space").at("main").files
    own = {path for path in space if not path.startswith("retfound_hf/")}
    assert own == {"app.py", "requirements.txt", "README.md"} and "retfound_hf/app/server.py" in space
    assert b"retfound" not in space["requirements.txt"].content
    hub_here.repo("org/mine-page", "space").add_files({"retfound_hf/gone.py": "", "notes.md": "the owner's"})
    publish(workshop / "classifier", "org/mine", space=True)
    assert set(hub_here.repo("org/mine-page", "space").at("main").files) == {*space, "notes.md"}
    assert b"org/mine" in space["app.py"].content and b"license: cc-by-nc-4.0" in space["README.md"].content
    assert f"{hub_here.url}/spaces/org/mine-page" in capsys.readouterr().out
    assert run_command(main, [str(workshop / "base"), "--repo_id", "org/base", "--space"]) == 2


def test_thresholds_and_reports_of_an_earlier_version_do_not_stay(hub_here, workshop, folder):
    publish(workshop / "classifier", "org/mine", revision="v1")
    repo = hub_here.repo("org/mine")
    foreign = {"notes/metrics.json", "docs/plots/roc.png", "examples.csv", ".gitattributes", "handler.py"}
    repo.add_files(dict.fromkeys(foreign, "the owner's"))
    place = folder("classifier")
    (place / "operating_points.json").unlink()
    (place / "operating_points.csv").unlink()
    shutil.rmtree(place / "validation")
    shutil.rmtree(place / "plots")
    publish(place, "org/mine", revision="v2")
    first, second = set(repo.at("v1").files), set(repo.at("v2").files)
    assert {path for path in first if path.startswith(("validation/", "plots/", "operating_points"))} == first - second
    assert len(first - second) > 4 and second - first == foreign
    assert len(repo.commits) == 4  # the first one, v1, the owner's, v2
    assert read_points("org/mine", ("normal", "stage 3"), ReportArguments()) == []


@pytest.mark.parametrize("asked", [True, False])
def test_the_page_of_a_private_model_does_not_go_into_a_public_space(hub_here, workshop, asked):
    if not asked:
        hub_here.create("org/mine", private=True)
    space = hub_here.create("org/mine-page", "space")
    with pytest.raises(BadArgumentError) as error:
        publish(workshop / "classifier", "org/mine", private=asked, space=True)
    assert error.value.field == "space"
    assert space.at("main").files == {}
    assert asked != (("model", "org/mine") in hub_here.store.repos)
    assert asked or hub_here.repo("org/mine").at("main").files == {}


def test_the_page_of_a_private_model_is_private(hub_here, workshop):
    publish(workshop / "classifier", "org/asked", private=True, space=True)
    hub_here.create("org/before", private=True)
    publish(workshop / "classifier", "org/before", space=True)
    publish(workshop / "classifier", "org/public", space=True)
    private = {name: hub_here.repo(f"org/{name}-page", "space").private for name in ("asked", "before", "public")}
    assert private == {"asked": True, "before": True, "public": False}


def test_private_is_not_published_into_a_public_repository(hub_here, workshop):
    hub_here.create("org/mine")
    with pytest.raises(BadArgumentError) as error:
        publish(workshop / "base", "org/mine", private=True)
    assert error.value.field == "private"
    assert hub_here.repo("org/mine").at("main").files == {}


# Without the package: code of the base, names of classes of the adapter.
ADAPTED = """
import json, sys
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification
remote = {"trust_remote_code": True}
model = AutoModelForImageClassification.from_pretrained("org/adapter", **remote)
processor = AutoImageProcessor.from_pretrained("org/adapter", **remote)
with torch.no_grad():
    logits = model(**processor(Image.open(sys.argv[1]), return_tensors="pt")).logits.tolist()
names, package = list(model.config.id2label.values()), "retfound_hf" in sys.modules
print(json.dumps({"logits": logits, "names": names, "package": package}))
"""


@pytest.mark.parametrize("written_by", ["finetune", "peft"])
def test_an_adapter_loads_onto_its_published_base(published, workshop, folder, image, tmp_path, written_by):
    place = folder("adapter")
    names = ["normal", "stage 3"]
    if written_by == "peft":  # which leaves the configurations to the base
        names = ["LABEL_0", "LABEL_1"]
        for name in ("config.json", "preprocessor_config.json"):
            (place / name).unlink()
    publish(place, "org/adapter", base_model="org/base")
    pixels = RetFoundImageProcessor.from_pretrained(workshop / "adapter")(Image.open(image), return_tensors="pt")
    with torch.no_grad():
        expected = load_classifier(str(workshop / "adapter"))(**pixels).logits
        found = load_classifier("org/adapter")(**pixels).logits
        by_auto_class = AutoModelForImageClassification.from_pretrained("org/adapter")
        logits = by_auto_class(**pixels).logits
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(logits, expected, atol=1e-6, rtol=0)
    assert list(by_auto_class.config.id2label.values()) == names
    home = tmp_path / "elsewhere"
    found = run(ADAPTED, published.env(home, token=None), str(image))
    assert (found["names"], found["package"]) == (names, False)
    torch.testing.assert_close(torch.tensor(found["logits"]), expected, atol=1e-6, rtol=0)
    assert run(ADAPTED, published.env(home, token=None, offline=True), str(image)) == found
    card = published.repo("org/adapter").at("main").files["README.md"].content.decode()
    assert "base_model: org/base\n" in card and "base_model_relation: adapter\n" in card


def test_a_merged_adapter_is_a_model_whose_card_says_so(published, workshop, tmp_path):
    from retfound_hf.finetuning.finetune import main as finetune

    words = ["--model_name_or_path", str(workshop / "base"), "--data", str(workshop / "images"), "--method", "lora"]
    words += ["--merge", "true", "--num_train_epochs", "1", "--lora_rank", "2", "--disable_tqdm", "true"]
    finetune([*words, "--dataloader_num_workers", "0", "--output_dir", str(tmp_path / "merged")])
    publish(tmp_path / "merged", "org/merged", base_model="org/base")
    files = published.repo("org/merged").at("main").files
    assert "model.safetensors" in files and not [name for name in files if name.startswith("adapter_")]
    card = files["README.md"].content.decode()
    assert "trained: a LoRA adapter and the head, then merged into the weights" in card
    assert "base_model: org/base\n" in card and "base_model_relation: finetune\n" in card
    own = RetFoundForImageClassification.from_pretrained(tmp_path / "merged").state_dict()
    found = AutoModelForImageClassification.from_pretrained("org/merged").state_dict()
    assert own.keys() == found.keys() and all(torch.equal(own[name], value) for name, value in found.items())


@pytest.mark.parametrize(
    ("token", "status", "said"), [("", 401, "no token"), ("hf_wrong", 401, "not valid"), ("hf_reader", 403, "right")]
)
def test_who_may_not_write_is_told_so(hub_here, workshop, monkeypatch, token, status, said):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(HubAccessError) as error:
        publish(workshop / "base", "org/mine")
    assert (error.value.repo_id, error.value.status) == ("org/mine", status) and said in str(error.value)


def test_without_a_connection_it_says_so(hub_here, workshop, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubAccessError) as error:
        publish(workshop / "base", "org/mine")
    assert (error.value.repo_id, error.value.status) == ("org/mine", None)


def test_an_upload_that_breaks_off_leaves_nothing_broken_and_goes_on(hub_here, workshop, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    publish(workshop / "base", "org/mine")
    before = hub_here.repo("org/mine").at("main")
    sent = set(hub_here.store.large)
    hub_here.cut("PUT", "_lfs", after=1000, times=100)
    with pytest.raises(HubAccessError):
        publish(workshop / "classifier", "org/mine")
    assert hub_here.repo("org/mine").at("main") == before
    hub_here.cuts.clear()
    publish(workshop / "classifier", "org/mine")
    assert "metrics.json" in hub_here.repo("org/mine").at("main").files
    assert len(set(hub_here.store.large) - sent) >= 1


def test_an_upload_that_breaks_off_before_the_commit_sends_nothing_twice(hub_here, workshop, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    hub_here.cut("POST", "/commit/", times=100)
    with pytest.raises(HubAccessError):
        publish(workshop / "base", "org/mine")
    sent = sum(request.startswith("PUT") for request in hub_here.requests)
    hub_here.cuts.clear()
    publish(workshop / "base", "org/mine")
    assert sum(request.startswith("PUT") for request in hub_here.requests) == sent == 1
