"""Memory does not grow with the source."""

import importlib.util
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[3] / "scripts" / "benchmarks" / "prepare_images.py"
BYTES_AN_IMAGE = 2000  # a prepared image has ten times as many


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads memory from /proc")
def test_peak_memory_is_flat(tmp_path):
    spec = importlib.util.spec_from_file_location("benchmark", BENCHMARK)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    peaks = []
    for count in (500, 4500):
        source = benchmark.make_small(tmp_path / f"images-{count}", count)
        options = ("--modality", "oct", "--num_workers", "2", "--shard_size", "250", "--image_format", "png")
        peaks.append(max(benchmark.memory_over_time(source, tmp_path / f"shards-{count}", *options)))
    assert (peaks[1] - peaks[0]) * 2**20 / 4000 < BYTES_AN_IMAGE
