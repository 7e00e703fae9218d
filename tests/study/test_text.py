"""Study files and sentences that others read: no path of the machine, and nothing else changed."""

import pytest
import yaml

from retfound_hf.study.config import read_settings
from retfound_hf.study.tables import shared_text, study_text, without_paths


def test_paths_are_cut_as_far_as_they_stay_different(tmp_path):
    path = tmp_path / "study.yaml"
    content = {
        "models": {"A": "/runs/a/model/final", "B": "/runs/b/model/final", "C": "facebook/dinov2-base"},
        "methods": ["linear"],
        "data": {"D": {"data": "/home/alice/images", "external": {"E": "/mnt/clinic/2/table.csv"}}},
        "finetune": {"cache_dir": "/home/alice", "report_to": "none"},
    }
    path.write_text(yaml.safe_dump(content))
    study = read_settings(path)
    shared = yaml.safe_load(shared_text(study))
    starts = [model["model_name_or_path"]["any"] for model in shared["models"].values()]
    assert starts == ["…/a/model/final", "…/b/model/final", "facebook/dinov2-base"]
    assert (shared["data"]["D"]["data"], shared["data"]["D"]["external"]["E"]["data"]) == ("…/images", "…/2/table.csv")
    assert shared["finetune"] == {"cache_dir": "…", "report_to": "none"}
    whole = yaml.safe_load(study_text(study))
    assert all(shared[name] == whole[name] for name in ("methods", "fractions", "seeds", "metrics", "reporting"))


@pytest.mark.parametrize(
    ("sentence", "said"),
    [
        ("models > A: /srv/x/broken: bad (/usr/lib/torch/x.py)", "models > A: …/x/broken: bad (…/torch/x.py)"),
        ("'/home/alice/a/b.safetensors', half of it", "'…/a/b.safetensors', half of it"),
        ("1/2 of org/name, see https://huggingface.co/a/b", "1/2 of org/name, see https://huggingface.co/a/b"),
    ],
)
def test_sentences_without_paths(sentence, said):
    assert without_paths(sentence) == said
