"""Worker pool: results in order, and an image that kills its process is rejected alone."""

import os
import time

import pytest

from retfound_hf.data.image_cache import Prepared, Preparer
from retfound_hf.data.shards import KILLED, Job, Workers
from retfound_hf.errors import RetFoundError


class Bomb:
    """Ends the process that receives it, as a crash in a decoder's C code does."""

    def __reduce__(self):
        return os._exit, (11,)


@pytest.fixture
def job():
    return Job(str, Preparer(32, True, 64))


def test_results_come_in_the_order_of_the_tasks(photos, job):
    paths = [str(path) for path in sorted(photos.rglob("eye*.jpg"))]
    tasks = [(number, paths[: number % 5]) for number in range(20)]
    with Workers(2, job) as workers:
        results = list(workers.ordered(iter(tasks)))
    expected = [job(path) for path in paths[:5]]
    assert [task for task, _ in results] == list(range(20))
    assert [prepared for _, prepared in results] == [expected[: number % 5] for number in range(20)]


def test_tasks_are_taken_only_as_there_is_room(photos, job):
    taken = []

    def tasks():
        for number in range(100):
            taken.append(number)
            yield number, []

    with Workers(1, job) as workers:
        for finished, _ in workers.ordered(tasks()):
            assert len(taken) - finished <= 5
    assert len(taken) == 100


def test_only_the_image_that_kills_its_process_is_rejected(photos, job):
    path = str(photos / "clinic-0" / "eye00.jpg")
    good = job(path)
    chunks = [[path, path], [path, Bomb(), path], [path], [Bomb()], [path, path]]
    with Workers(2, job) as workers:
        results = [prepared for _, prepared in workers.ordered(list(enumerate(chunks)))]
    killed = Prepared(reason=KILLED)
    assert results == [[good, good], [good, killed, good], [good], [killed], [good, good]]


def test_only_the_image_that_takes_too_long_is_rejected(job):
    with Workers(1, Job(time.sleep, job.preparer, seconds=1)) as workers:
        ((_, results),) = workers.ordered([(0, [0, 60, 0])])
    assert [prepared.reason == KILLED for prepared in results] == [False, True, False]


def test_workers_that_never_start_are_an_error_not_a_million_rejections(job):
    with (
        pytest.raises(RetFoundError, match="`num_workers`"),
        Workers(1, Job(Bomb(), job.preparer)) as workers,
    ):
        list(workers.ordered([(0, ["eye.jpg"])]))


def test_no_error_of_one_image_stops_a_job(job):
    prepared = Job(lambda ref: 1 / ref, job.preparer)(0)
    assert prepared.reason == "it cannot be prepared (division by zero)"
