import multiprocessing

import pytest

from retfound_hf.evaluation.metrics import compute_metrics

PROCESSES = 2


def one_process(process_id, labels, scores, cache_dir, results):
    from retfound_hf.evaluation.hf_metric import load_metric

    options = {"cache_dir": cache_dir, "num_process": PROCESSES, "process_id": process_id, "experiment_id": "shared"}
    metric = load_metric("single_label_classification", ["a", "b", "c"], **options)
    for _ in range(2):  # the second round meets what the first has left behind
        metric.add_batch(predictions=scores[process_id::PROCESSES], references=labels[process_id::PROCESSES])
        results.put((process_id, metric.compute()))


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_two_processes_equal_one(single_label, tmp_path, start):
    import retfound_hf.evaluation.hf_metric  # noqa: F401  a fork has it, where a fresh process imports for seconds

    labels, scores = single_label(101, 3)
    context = multiprocessing.get_context(start)
    results = context.Queue()
    workers = [
        context.Process(target=one_process, args=(index, labels, scores, str(tmp_path), results))
        for index in range(PROCESSES)
    ]
    for worker in workers:
        worker.start()
    found = [results.get(timeout=120) for _ in range(2 * PROCESSES)]
    for worker in workers:
        worker.join(timeout=60)
    assert [result for process_id, result in found if process_id] == [None, None]
    expected = compute_metrics("single_label_classification", labels, scores, ["a", "b", "c"])
    for process_id, result in found:
        if process_id == 0:
            assert result == pytest.approx(expected, abs=1e-6)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
