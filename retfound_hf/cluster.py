"""Work of many machines: parts `i/n` of it, dealt by one rule, and a cluster that does them as one array of jobs."""

import dataclasses
import math
import os
import re
import shutil
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from tqdm import tqdm

from .errors import BadArgumentError, MissingPackageError, RetFoundError, one_line, require
from .options import check_ranges, option
from .processes import clean_start

LOGS = "cluster"  # folder in that of the output, for the logs and what else submitit writes
# As sbatch reads it: minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes and so on.
TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")
SECONDS = {"slurm": 10, "local": 0.2}  # between two looks at the jobs
T = TypeVar("T")


@dataclass(frozen=True)
class Share:
    """Share of one machine of several: every `count`-th item from the `number`-th on."""

    number: int = 1
    count: int = 1

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def owns(self, index: int) -> bool:
        """Whether the item at `index`, counted from 0, is in this share."""
        return index % self.count == self.number - 1

    def of(self, items: Sequence[T]) -> Sequence[T]:
        """The items of this share, in their order."""
        return items[self.number - 1 :: self.count]


class FailedPart(NamedTuple):
    """Part of the work whose job failed, the reason, and the file that the job printed to."""

    part: str
    reason: str
    log: Path


@dataclass
class ClusterArguments:
    part: str | None = option(None, "i/n: this machine's share of the work, such as 1/4; all of it by default")
    cluster: Literal["slurm", "local"] | None = option(
        None, "do the work as one array of jobs and wait for them: slurm, or local for processes on this machine"
    )
    tasks: int = option(8, "with --cluster: jobs of the array", 1)
    time: str = option("8:00:00", "with --cluster: limit of each job, as for sbatch: minutes, 8:00:00 or 1-12:00:00")
    partition: str | None = option(None, "with --cluster slurm: where the jobs run")
    sbatch: list[str] = field(
        default_factory=list,
        metadata={"help": "with --cluster slurm: more options of sbatch, such as account=eyes qos=long"},
    )
    cpus_per_task: int | None = option(None, "with --cluster: cores of each job", 1)
    gpus_per_node: int | None = option(None, "with --cluster: GPUs of each job", 0)
    mem_gb: float | None = option(None, "with --cluster: memory of each job in GB", above=0)

    def __post_init__(self) -> None:
        require("cluster", self.cluster, (None, *SECONDS))
        check_ranges(self)
        _, minutes = self.share, self.minutes  # both are checked
        if minutes == 0:
            raise BadArgumentError(f"`time={self.time}` must be above 0", field="time", value=self.time)
        for given in self.sbatch:
            if not re.fullmatch(r"[a-z][a-z-]*(=.+)?", given):
                message = f"`sbatch={given}` is not an option of sbatch; give NAME=VALUE, such as account=eyes"
                raise BadArgumentError(message, field="sbatch", value=given)
        for each in dataclasses.fields(self)[2:]:
            value = getattr(self, each.name)
            needed = "slurm" if each.name in ("partition", "sbatch") else self.cluster or "slurm"
            if self.cluster != needed and value not in (each.default, []):
                message = f"`{each.name}={value}` needs `cluster={needed}`"
                raise BadArgumentError(message, field=each.name, value=value)
        if self.cluster is None:
            return
        if self.part is not None:
            message = "`part` and `cluster` exclude each other; a cluster does all parts"
            raise BadArgumentError(message, field="part", value=self.part)
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            message = "`cluster` under a launcher of several processes would submit the jobs of each; start one"
            raise BadArgumentError(message, field="cluster", value=self.cluster)
        if find_spec("submitit") is None:
            raise MissingPackageError("submitit", "cluster")
        if self.cluster == "slurm" and shutil.which("srun") is None:
            message = "`cluster=slurm`: there is no srun here; start the command on a machine that may submit jobs"
            raise BadArgumentError(message, field="cluster", value=self.cluster, accepted=SECONDS)

    @property
    def share(self) -> Share:
        """`part` as numbers, 1/1 for the whole."""
        found = re.fullmatch(r"(\d+)/(\d+)", self.part or "1/1")
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            message = f"`part={self.part}` is not i/n with i from 1 to n; give such as 1/8 to 8/8"
            raise BadArgumentError(message, field="part", value=self.part)
        return Share(int(found[1]), int(found[2]))

    @property
    def shares(self) -> list[Share]:
        """The shares of all jobs of the array."""
        return [Share(number, self.tasks) for number in range(1, self.tasks + 1)]

    @property
    def minutes(self) -> int:
        """The time limit, rounded up."""
        found = TIME.fullmatch(str(self.time))
        if found is None:
            message = f"`time={self.time}` is not accepted; give minutes, hours:minutes:seconds or days-hours"
            raise BadArgumentError(message, field="time", value=self.time)
        days, *clock = (int(number or 0) for number in found.groups())
        # Without days and hours the first number is of minutes.
        hours, minutes, seconds = clock if found[1] or found[4] else (0, *clock[:2])
        return math.ceil(((days * 24 + hours) * 3600 + minutes * 60 + seconds) / 60)

    def refuse_overwriting(self, overwrite: bool) -> None:
        """Raise where this machine is one of several and is to overwrite a folder."""
        if overwrite and self.share.count > 1:
            raise BadArgumentError(
                "`overwrite_output_dir` with `part` would remove what the other parts have made; remove the folder "
                "yourself before the parts begin",
                field="overwrite_output_dir", value=True,
            )  # fmt: skip

    def run(self, function: Callable[["ClusterArguments"], T], folder: Path, shares: Iterable[Share]) -> list[T]:
        """Do shares of the work as one array of jobs, and wait for them; they are cancelled where that is interrupted.

        A job that SLURM preempts, or ends at its time limit, is queued again, so that the function should go on where
        it was.

        Args:
            function: does the share of the arguments that it is given; picklable, of the package.
            folder: of the output, which every machine sees.
            shares: those that are not done yet.

        Returns:
            What the function returned, by share.

        Raises:
            RetFoundError: jobs that failed: `failed` has a `FailedPart` of each.
        """
        import submitit

        parts = [ClusterArguments(part=str(share)) for share in shares]
        try:
            executor = submitit.AutoExecutor(folder / LOGS, cluster=self.cluster)
            executor.update_parameters(
                name=f"retfound-{folder.resolve().name}", timeout_min=self.minutes, cpus_per_task=self.cpus_per_task,
                gpus_per_node=self.gpus_per_node, mem_gb=self.mem_gb, slurm_partition=self.partition,
                slurm_additional_parameters={name: value or True for name, _, value in (
                    option.partition("=") for option in self.sbatch
                )},
            )  # fmt: skip
            with clean_start():
                jobs = executor.map_array(_Job(function), parts) if parts else []
        except Exception as error:  # of sbatch, which says why
            raise RetFoundError(f"the jobs cannot be submitted: {one_line(error)}") from error
        try:
            done = submitit.helpers.as_completed(jobs, poll_frequency=SECONDS[str(self.cluster)])
            for _ in tqdm(done, total=len(jobs), desc=f"Jobs on {self.cluster}", unit="job"):
                continue
        except BaseException:
            for job in jobs:
                job.cancel(check=False)
            raise
        results = [_result(job) for job in jobs]
        failed = [
            FailedPart(str(part.part), one_line(result), Path(job.paths.stderr))
            for part, job, result in zip(parts, jobs, results, strict=True)
            if isinstance(result, Exception)
        ]
        if failed:
            raise RetFoundError(
                f"{len(failed)} of {len(jobs)} jobs failed, such as that of part {failed[0].part} "
                f"({failed[0].reason}); its log is {failed[0].log}; the same command does what is missing",
                failed=tuple(failed),
            ) from next(result for result in results if isinstance(result, Exception))
        return results


@dataclass(frozen=True)
class _Job:
    """Function that a job calls; an error is returned, since submitit would keep its text alone."""

    function: Callable[[ClusterArguments], Any]

    def __call__(self, arguments: ClusterArguments) -> Any:
        try:
            return self.function(arguments)
        except Exception as error:
            traceback.print_exc()
            return error if isinstance(error, RetFoundError) else RetFoundError(f"{type(error).__name__}: {error}")

    def checkpoint(self, arguments: ClusterArguments) -> Any:
        """Submission that submitit queues at the time limit."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, arguments)


def _result(job: Any) -> Any:
    """Result of a job, or an error for one that failed outside of our function."""
    error = job.exception()
    if error is None:
        return job.result()
    _, *trace = str(error).split("-" * 22)  # submitit puts lines of them around a traceback
    reason = trace[0].strip().splitlines()[-1] if len(trace) > 1 else f"it ended without a result, state {job.state}"
    return RetFoundError(reason)
