"""Which layer a batch norm becomes where several processes train; what it computes is under test_processes."""

import pytest
import torch
from torch import nn

from retfound_hf.pretraining.objectives import distributed as batch_norm
from retfound_hf.pretraining.objectives.distributed import DistributedBatchNorm, convert_sync_batchnorm


@pytest.fixture
def network():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm1d(4, affine=False)))
    network[1].running_mean.fill_(2.0)
    network[1].weight.requires_grad_(False)
    return network


@pytest.mark.parametrize(("device", "of_images"), [("cpu", DistributedBatchNorm), ("cuda", nn.SyncBatchNorm)])
def test_norms_of_heads_never_make_the_host_wait(network, device, of_images, monkeypatch):
    monkeypatch.setattr(batch_norm, "num_processes", lambda: 2)
    names = list(network.state_dict())
    found = convert_sync_batchnorm(network, torch.device(device))
    assert type(found[1]) is of_images and type(found[2][0]) is DistributedBatchNorm
    assert list(found.state_dict()) == names
    assert found[1].running_mean.unique().tolist() == [2.0] and not found[1].weight.requires_grad


def test_one_process_keeps_its_layers(network):
    assert type(convert_sync_batchnorm(network, torch.device("cpu"))[1]) is nn.BatchNorm2d
