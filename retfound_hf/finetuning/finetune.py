"""Fine-tuning from arguments to a finished folder, and the command `finetune`."""

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from transformers import set_seed

from ..errors import RetFoundError
from ..evaluation.report import ReportArguments, format_table, write_report
from ..files import move_into, refuse_existing, write_json
from ..inference.evaluate import write_splits
from ..inference.predict import predict_logits, process_state, to_scores
from ..options import parse_arguments
from ..record import write_run_record
from .arguments import DataArguments, FinetuneTrainingArguments, MethodArguments, ModelArguments
from .card import write_finetuned_card
from .decisions import DecisionArguments, calibrate, check_requests, choose_points, save_points
from .methods import FinetuneJob, make_job, save_adapter, train_head, train_network


def finetune(
    model_args: ModelArguments,
    data_args: DataArguments,
    method_args: MethodArguments,
    args: FinetuneTrainingArguments,
    decision_args: DecisionArguments | None = None,
    report_args: ReportArguments | None = None,
) -> dict[str, Any]:
    """Fine-tune and evaluate; `arguments`, `decision` and `inference.report_arguments` say what can be asked.

    Writes into `args.output_dir` the model folder (or adapter), `metrics.json`, `predictions.csv` and `plots/` of the
    test split, `validation/` with the same of the validation split, `splits.csv`, `history.json`, a card, `run.json`.
    For classes also `operating_points.json`, thresholds chosen on the validation split, and `operating_points.csv`,
    what they reach on the test split.

    Returns:
        The test metrics; on processes other than the main one, nothing.
    """
    started = time.time()
    checkpoint = checkpoint_to_resume(args)
    if checkpoint is None and process_state().is_main_process:
        refuse_existing(args.output_dir, args.overwrite_output_dir)
        _remove_checkpoints(args.output_dir)  # of an earlier run: `latest` must not find them
    set_seed(args.seed)
    decision, report = decision_args or DecisionArguments(), report_args or ReportArguments()
    job = make_job(model_args, data_args, method_args, args)
    check_requests(job, decision, report)
    model, history = train_head(job) if method_args.method == "linear" else train_network(job, checkpoint)
    logits = {
        split: predict_logits(model, job.prepared[split].images, job.processor, **job.forward_options)
        for split in ("val", "test")
    }
    if decision.calibrate:
        calibrate(model, logits, job.prepared["val"].targets, job.labelled.problem_type)
    scores = {split: to_scores(values, job.labelled.problem_type) for split, values in logits.items()}
    metrics: dict[str, Any] = {}
    if process_state().is_main_process:
        metrics = _write(job, model, scores, history, decision, report, round(time.time() - started, 1))
        print(f"\nTest split:\n{format_table(metrics, job.labelled.class_names)}\n")
        print(f"Written to {args.output_dir}: the model, metrics.json, predictions.csv, plots/, validation/, run.json")
    process_state().wait_for_everyone()
    return metrics


def _write(
    job: FinetuneJob,
    model: Any,
    scores: dict[str, Any],
    history: list[dict[str, Any]],
    decision: DecisionArguments,
    report: ReportArguments,
    seconds: float,
) -> dict[str, Any]:
    output_dir = Path(job.args.output_dir)
    with move_into(output_dir) as partial:
        save_model(job, model, partial)
    points = choose_points(job, scores["val"], decision, report)
    save_points(output_dir, job, points, report)
    reports = {
        split: write_report(
            folder,
            job.prepared[split].rows,
            job.prepared[split].targets,
            scores[split],
            job.labelled.problem_type,
            job.labelled.class_names,
            report=report,
            points=points if split == "test" else (),
        )
        for split, folder in (("val", output_dir / "validation"), ("test", output_dir))
    }
    write_splits(output_dir, job.labelled)
    write_json(output_dir / "history.json", history)
    write_finetuned_card(output_dir, job, seconds, report.level)
    write_run_record(
        output_dir,
        "finetune",
        [job.model_args, job.data_args, job.method_args, job.args, decision, report],
        seconds=seconds,
        images={split: len(part.images) for split, part in job.prepared.items()},
        rejected_images=[image for part in job.prepared.values() for image in part.rejected],
    )
    if not job.args.keep_checkpoints:
        _remove_checkpoints(output_dir)
    return reports["test"]


def save_model(job: FinetuneJob, model: Any, folder: Path) -> None:
    """Write the trained model, or the adapter, with its preprocessing."""
    if job.method_args.method == "lora" and not job.method_args.merge:
        save_adapter(model, job.processor, folder)
    else:
        model.save_pretrained(folder)
        job.processor.save_pretrained(folder)


def _remove_checkpoints(output_dir: str | Path) -> None:
    for path in Path(output_dir).glob("checkpoint-*"):
        shutil.rmtree(path)


def checkpoint_to_resume(args: FinetuneTrainingArguments) -> str | None:
    """The checkpoint folder that `--resume_from_checkpoint` asks for: a path, or `latest` in the output folder."""
    asked = args.resume_from_checkpoint
    if asked in (None, "", "False", "false"):
        return None
    if asked in ("latest", "True", "true"):
        # Trainer writes its state last: a checkpoint without it was cut off.
        found = [path.parent for path in Path(args.output_dir).glob("checkpoint-*/trainer_state.json")]
        if not found:
            raise RetFoundError(f"--resume_from_checkpoint {asked}: there is no checkpoint in {args.output_dir}")
        return str(max(found, key=lambda path: int(path.name.removeprefix("checkpoint-"))))
    if not Path(asked).is_dir():
        raise RetFoundError(f"--resume_from_checkpoint {asked} is no folder; give a checkpoint folder or latest")
    return asked


class Publisher(Protocol):
    """What `--push_to_hub` needs; publishing is a room above this one, so that it is handed in."""

    def check(self, token: str | None) -> None:
        """Raise RetFoundError where nothing could be published, before hours of training."""

    def push(self, folder: str, repo_id: str | None, private: bool | None, token: str | None) -> str | None:
        """Publish a finished folder and return its address."""


def main(argv: Sequence[str] | None = None, publisher: Publisher | None = None) -> None:
    """Parse the arguments, run, and publish the folder if `--push_to_hub` asks for it."""
    from ..evaluation.report import ReportArguments
    from .arguments import DataArguments, FinetuneTrainingArguments, MethodArguments, ModelArguments
    from .decisions import DecisionArguments

    parsed = parse_arguments(
        ModelArguments,
        DataArguments,
        MethodArguments,
        FinetuneTrainingArguments,
        DecisionArguments,
        ReportArguments,
        argv=argv,
        description="Fine-tune a model folder on a labelled set, and evaluate it on the test split.",
    )
    args = parsed[3]
    if args.push_to_hub:
        if publisher is None:
            raise RetFoundError("--push_to_hub belongs to the command; publish the finished folder by itself instead")
        publisher.check(args.hub_token)
    from ..inference.predict import process_state

    finetune(*parsed)
    if args.push_to_hub and process_state().is_main_process:
        print(publisher.push(args.output_dir, args.hub_model_id, args.hub_private_repo, args.hub_token))
