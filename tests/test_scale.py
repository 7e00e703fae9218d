"""The computed times of whole runs: limits that hold whatever is assumed."""

import pytest
import scale


def test_one_gpu_only_computes_and_many_never_beat_their_number():
    gpu = scale.GPUS["H100"]
    one, eight, many = (scale.step_seconds(gpu, gpus, 6400, 1e11, 0.5) for gpus in (1, 8, 64))
    assert one == pytest.approx(6400 * 1e11 / (gpu.peak * 0.5))
    assert one / 8 <= eight <= one and one / 64 <= many <= eight
    few, sending = one / 6400, 2 * 63 / 64 * 4 * scale.PARAMETERS / gpu.beyond
    assert scale.step_seconds(gpu, 64, 64, 1e11, 0.5) == pytest.approx(few + sending - few * 2 / 3)


def test_operations_are_those_of_the_sizes():
    width, depth, tokens = 1024, 24, 197
    block = 2 * tokens * 12 * width**2 + 4 * tokens**2 * width
    patches = 2 * 196 * 768 * width
    assert scale.finetuning_flops() == pytest.approx(3 * (depth * block + patches), rel=0.01)
