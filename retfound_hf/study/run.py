"""A study from its file to its tables: checked, planned, run job by job, reported."""

import time
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from ..runs.errors import RetFoundError
from ..runs.record import write_run_record
from .checks import check_study
from .command import StudyArguments
from .estimate import guess_times, job_table, total
from .folder import JobResult, ended_jobs, read_job
from .jobs import Job, part_of, plan_jobs
from .processes import run_jobs
from .reading import read_settings
from .settings import Study
from .tables import write_plan, write_results


def run_study(arguments: StudyArguments) -> tuple[JobResult, ...]:
    """Run all jobs of a study that have not finished yet, and write its tables.

    Returns:
        Every job that has ended.

    Raises:
        RetFoundError: anything wrong with the file, before any job starts; or, when all have ended, failed jobs.
    """
    started = time.time()
    study = read_settings(arguments.study)
    if arguments.jobs < 1:
        raise RetFoundError(f"--jobs {arguments.jobs} must be at least 1")
    folder = Path(arguments.output_dir or Path(arguments.study).stem)
    tasks = check_study(study)
    jobs = plan_jobs(study, tasks)
    mine = part_of(jobs, arguments.part)
    done = {job.id for job in mine if (found := read_job(folder, job.id)) and found.status == "finished"}
    print(f"{study.name}: {len(jobs)} jobs, {len(mine)} of them here, {len(done)} finished already")
    if arguments.dry_run:
        guesses = guess_times(mine, study, tasks, ended_jobs(folder, [job.labelled for job in jobs]))
        left = [guess for job, guess in zip(mine, guesses, strict=True) if job.id not in done]
        print(job_table(mine, guesses, done), f"\n\n{len(left)} jobs to do, {total(left, arguments.jobs)}")
        return ()
    write_plan(folder, study, tasks, jobs)
    try:
        _run([job for job in mine if job.id not in done], study, folder, arguments.jobs)
    finally:
        ended = write_results(folder, study, jobs)
    write_run_record(folder, "study", arguments, seconds=round(time.time() - started, 1))
    failed = [job for job in ended if job.status == "failed"]
    from .report.building import write_report

    write_report(folder)
    print(f"Written to {folder}: report.html, results.csv; {len(ended) - len(failed)} of {len(jobs)} jobs finished")
    if failed:
        raise RetFoundError(
            f"{len(failed)} of {len(jobs)} jobs failed, such as {failed[0].id} ({failed[0].reason}); their folders in "
            f"{folder / 'jobs'} hold log.txt; the same command tries them again"
        )
    return ended


def _run(jobs: Sequence[Job], study: Study, folder: Path, at_once: int) -> None:
    progress = tqdm(total=len(jobs), desc=study.name, unit="job", disable=not jobs)
    with progress:
        for result in run_jobs(jobs, study, folder, at_once):
            if result.status == "failed":
                progress.write(f"failed: {result.id}: {result.reason}")
            progress.update()
