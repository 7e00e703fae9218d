"""One step that is not finite leaves no trace in batch norms, and others are as they would be without a guard."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModel, ResNetConfig, ResNetModel

from retfound_hf.pretraining.data import make_loader
from retfound_hf.pretraining.loop import BatchNormGuard
from retfound_hf.pretraining.objectives.joint_embedding import JointEmbedding
from retfound_hf.pretraining.pretrain import run as pretrain

SMALL = {
    "simclr": {},
    "moco_v3": {"head_width": 32, "teacher_momentum": 0.9},
    "dino": {"head_width": 32, "num_prototypes": 24, "local_crops": 2, "teacher_momentum": 0.9},
    "swav": {"head_width": 32, "num_prototypes": 24, "local_crops": 2},
}


@pytest.fixture(scope="module")
def resnet(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "resnet"
    torch.manual_seed(0)
    ResNetModel(ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1])).save_pretrained(folder)
    return folder


@pytest.fixture
def options(resnet, model_folder):
    """Of a quick run that leaves steps out; `convolutional` for one on a ResNet."""

    def make(name: str, convolutional: bool, **others):
        size = {"model_name_or_path": str(resnet), "image_size": 32} if convolutional else {}
        return {
            "objective": name, "on_non_finite": "skip", "modality": "cfp", "per_device_train_batch_size": 16,
            "save_steps": 6, **size, **SMALL[name], **others,
        }  # fmt: skip

    return make


def plant(patch: pytest.MonkeyPatch, passes: set[int]) -> None:
    """The pixels of these forward passes, counted from 1, are infinite."""
    views, taken = JointEmbedding.views, []

    def planted(self, images, draws):
        taken.append(None)
        made = views(self, images, draws)
        return {name: pixels * math.inf for name, pixels in made.items()} if len(taken) in passes else made

    patch.setattr(JointEmbedding, "views", planted)


@pytest.mark.parametrize(
    "name, convolutional",
    [("simclr", True), ("swav", True), ("moco_v3", True), ("dino", True), ("simclr", False), ("moco_v3", False)],
)
def test_a_step_of_infinite_pixels_leaves_a_result_of_use(options, tiny_arguments, monkeypatch, name, convolutional):
    plant(monkeypatch, {3})
    folder = pretrain(tiny_arguments(**options(name, convolutional)))
    for file in ("model.safetensors", "objective.safetensors"):
        found = load_file(folder / "checkpoint-6" / file)
        assert not [key for key, value in found.items() if not value.isfinite().all()]
    model = AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        features = model(torch.randn(4, 3, 32, 32)).pooler_output.flatten(1)
    assert features.isfinite().all() and features.std(dim=0).max() > 0


@pytest.mark.parametrize("name, convolutional", [("simclr", True), ("moco_v3", True), ("swav", False)])
def test_a_run_without_faults_is_the_same_as_without_the_guard(
    options, tiny_arguments, monkeypatch, tmp_path, name, convolutional
):
    whole = pretrain(tiny_arguments(tmp_path / "guarded", **options(name, convolutional)))
    monkeypatch.setattr(BatchNormGuard, "restore", lambda *_: None)
    bare = pretrain(tiny_arguments(tmp_path / "bare", **options(name, convolutional)))
    for file in ("model.safetensors", "objective.safetensors", "optimizer.bin"):
        one, other = (folder / "checkpoint-6" / file for folder in (whole, bare))
        assert one.read_bytes() == other.read_bytes(), file


@pytest.mark.parametrize("half", [False, True])
def test_of_several_passes_one_that_is_not_finite_undoes_all(
    options, make_loop, monkeypatch, half_precision_here, half
):
    """The second step has the third and the fourth pass; also where a scaler guards the weights (fp16)."""
    plant(monkeypatch, {4})
    loop, reader = make_loop(**options("dino", True, gradient_accumulation_steps=2))
    loop.monitor.log.close()
    batches = iter(make_loader(reader, loop.objective.draw, loop.order, loop.position, 0, pin_memory=False))
    loop.network.train()
    statistics = BatchNormGuard(loop.network)
    kept = []
    for _ in range(3):
        loop.step(batches)
        kept.append(torch.cat(statistics.buffers))
    assert not loop.buffer.values()[1, 0].isfinite()
    assert torch.equal(kept[0], kept[1])
    assert kept[2].isfinite().all() and not torch.equal(kept[1], kept[2])


@pytest.mark.parametrize("loss, norm, taken", [(1, 1, True), (math.nan, 1, False), (1, math.inf, False)])
def test_loss_and_norm_decide(loss, norm, taken):
    network = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2), nn.BatchNorm1d(2, affine=False))
    statistics = BatchNormGuard(network)
    before = [buffer.clone() for buffer in statistics.buffers]
    statistics.keep()
    network(torch.randn(8, 3))
    after = [buffer.clone() for buffer in statistics.buffers]
    statistics.restore(torch.tensor(float(loss)), torch.tensor(float(norm)))
    assert len(before) == 4
    for number, buffer in enumerate(statistics.buffers):
        assert torch.equal(buffer, (after if taken else before)[number])
        assert not torch.equal(before[number], after[number])


def test_a_network_without_batch_norms_has_nothing_to_keep(model_folder):
    statistics = BatchNormGuard(AutoModel.from_pretrained(model_folder))
    statistics.keep()
    statistics.restore(torch.tensor(math.nan), torch.tensor(1.0))
    assert statistics.buffers == []
