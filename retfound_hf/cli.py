"""Commands by name: `retfound NAME`, and `scripts/NAME.py` in the checkout; their help, next steps and completion."""

import importlib
import logging
import os
import re
import shlex
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from .errors import BadArgumentError, require
from .options import parsed_values, parser_of, run_command
from .processes import worker_context

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Command:
    """Row of `COMMANDS`.

    Attributes:
        module, function: that run it.
        line: what it does, for --help.
        example: its words after `retfound`, for --help.
        next: what to run after it, with its options in braces; an option that is not set leaves its name.
        workers: module of its worker processes, which their server imports while this process imports its own.
    """

    module: str
    function: str
    line: str
    example: str
    next: str = ""
    workers: str = ""


# Task -> its commands in the order of use.
TASKS: dict[str, dict[str, Command]] = {
    "begin": {
        "doctor": Command(
            "hub.doctor", "main", "what this machine has and lacks, and the command that mends it", "doctor",
            "retfound make_synthetic my-images",
        ),
        "completion": Command(
            "cli", "print_completion", "completion of commands and options for a shell",
            "completion bash > ~/.local/share/bash-completion/completions/retfound",
        ),
    },
    "weights": {
        "fetch": Command(
            "hub.fetch", "main", "official weights from the Hub -> model folder", "fetch retfound-cfp",
            "retfound finetune --model_name_or_path {output_dir|name} --data IMAGES --method linear "
            "--output_dir my-classifier",
        ),
        "convert_checkpoint": Command(
            "models.conversion", "main", "official .pth checkpoint -> model folder",
            "convert_checkpoint RETFound_mae_natureCFP.pth retfound-cfp",
            "retfound finetune --model_name_or_path {out} --data IMAGES --method linear --output_dir my-classifier",
        ),
    },
    "data": {
        "make_synthetic": Command(
            "data.synthetic_sets", "main", "synthetic labelled set of CFP or OCT images",
            "make_synthetic my-images --modality cfp",
            "retfound finetune --model_name_or_path retfound-mini --data {out} --method linear "
            "--output_dir my-classifier",
        ),
        "make_registry": Command(
            "data.synthetic_sets", "make_registry_command", "synthetic registry: dated images and events",
            "make_registry my-registry",
            "retfound build_cohort {out}/images.csv {out}/events.csv my-cohort --event EVENT --horizon 3y",
        ),
        "build_cohort": Command(
            "data.build_cohort", "main", "dates of images and events -> labelled cohort for a horizon",
            "build_cohort images.csv events.csv my-cohort --event stroke --horizon 3y",
            "retfound finetune --model_name_or_path retfound-cfp --data {out}/cohort.csv --output_dir my-classifier",
        ),
        "check_dataset": Command(
            "data.public_sets", "main", "check of a public data set's copy: complete, rightly named",
            "check_dataset IDRiD data/IDRiD",
            "retfound finetune --model_name_or_path retfound-cfp --data {folder} --output_dir my-classifier",
        ),
        "prepare_images": Command(
            "data.prepare_images", "main", "folder, table or data set of images -> parquet shards",
            "prepare_images my-images my-shards --modality cfp",
            "retfound pretrain --model_name_or_path retfound-cfp --train_data {out} --output_dir my-retfound",
            workers="data.shards",
        ),
    },
    "training": {
        "finetune": Command(
            "finetuning.finetune", "main", "model folder + labelled set -> classifier: full, lora or linear",
            "finetune --model_name_or_path retfound-cfp --data my-images --method linear --output_dir my-classifier",
            "retfound evaluate --model_name_or_path {output_dir} --data OTHER_IMAGES --output_dir my-evaluation",
        ),
        "pretrain": Command(
            "pretraining.pretrain", "main", "shards -> model folder: self-supervised, on one or many devices",
            "pretrain --model_name_or_path retfound-cfp --train_data my-shards --output_dir my-retfound",
            "retfound finetune --model_name_or_path {output_dir} --data IMAGES --output_dir my-classifier",
        ),
        "study": Command(
            "study.runner", "main", "models x methods x data x fractions x seeds, from one file to a report",
            "study study.yaml --output_dir my-study",
            "retfound evaluate --model_name_or_path MODEL --data OTHER_IMAGES --output_dir my-evaluation",
        ),
    },
    "use": {
        "evaluate": Command(
            "inference.evaluate", "main", "fine-tuned folder on any labelled set",
            "evaluate --model_name_or_path my-classifier --data my-images --output_dir my-evaluation",
            "retfound explain --model_name_or_path {model_name_or_path} --data {data} --max_images 24 "
            "--output_dir my-maps",
        ),
        "predict": Command(
            "inference.unlabelled", "main", "images without labels -> predictions.csv, with their quality",
            "predict --model_name_or_path my-classifier --data new-images --output_dir my-predictions",
            "retfound explain --model_name_or_path {model_name_or_path} --data {data} --max_images 24 "
            "--output_dir my-maps",
        ),
        "embed": Command(
            "inference.embed", "main", "feature vectors of images",
            "embed --model_name_or_path retfound-cfp --data my-images --output_dir my-features",
            "retfound finetune --model_name_or_path {model_name_or_path} --data LABELLED_IMAGES --method linear "
            "--output_dir my-classifier",
        ),
        "explain": Command(
            "explanation.explain", "main", "relevance maps of a classifier, reconstructions of an autoencoder",
            "explain --model_name_or_path my-classifier --data my-images --output_dir my-maps",
            "retfound app --model {model_name_or_path}",
        ),
        "app": Command(
            "app.server", "main", "web page of a fine-tuned folder: one image, many images, relevance maps",
            "app --model my-classifier",
            "retfound publish {model} --repo_id ORG/NAME --space --dry_run",
        ),
    },
    "passing on": {
        "export": Command(
            "hub.export", "main", "model folder -> timm's state dict or an ONNX graph",
            "export my-classifier --format onnx",
            "retfound publish {folder} --repo_id ORG/NAME --dry_run",
        ),
        "publish": Command(
            "hub.publish", "main", "finished folder -> the Hub, with its card",
            "publish my-classifier --repo_id ORG/NAME --dry_run",
            "retfound evaluate --model_name_or_path {repo_id} --data IMAGES --output_dir my-evaluation",
        ),
    },
}  # fmt: skip
COMMANDS = {name: row for rows in TASKS.values() for name, row in rows.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the first word names with the other words as its arguments; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    quiet = words[:1] == ["--quiet"]
    words = words[quiet:]
    if not words or words[0] in ("-h", "--help"):
        print(overview())
        return 0
    if argv is None:
        sys.argv[0] = f"retfound {words[0]}"  # name of the program in `--help` and `run.json`

    def run(rest: Sequence[str]) -> None:
        if words[0] in COMMANDS and COMMANDS[words[0]].workers and not {"-h", "--help"} & set(rest):
            worker_context(f"{__package__}.{COMMANDS[words[0]].workers}")
        command(words[0])(rest)
        if os.environ.get("RANK", "0") == "0" and (after := next_step(words[0], parsed_values())):
            logger.info("Next: %s", after)

    return run_command(run, words[1:], quiet)


def overview() -> str:
    """Text of `retfound --help`."""
    lines = ["usage: retfound [--quiet] COMMAND [options]"]
    for task, rows in TASKS.items():
        lines += ["", f"{task}:"]
        for name, row in rows.items():
            lines += [f"  {name:<20}{row.line}", f"  {'':<20}  retfound {row.example}"]
    return "\n".join([*lines, "", "retfound COMMAND --help lists the options of a command; --quiet leaves notes out."])


def next_step(name: str, values: dict[str, Any]) -> str:
    """Line that says what to run after a command, with the values of its options."""

    def value(match: re.Match[str]) -> str:
        names = match[1].split("|")
        found = next((values[each] for each in names if values.get(each) is not None), None)
        return names[0].upper() if found is None else shlex.quote(str(found))

    return re.sub(r"\{([\w|]+)\}", value, COMMANDS[name].next)


def command(name: str) -> Callable[[Sequence[str] | None], Any]:
    """Function of a command; it takes the command's arguments as words.

    Raises:
        BadArgumentError: no command of this name.
    """
    require("command", name, COMMANDS)
    row = COMMANDS[name]
    found = getattr(importlib.import_module(f".{row.module}", __package__), row.function)
    return partial(found, publisher=_publisher) if name == "finetune" else found


def _publisher() -> Any:
    """The Hub's publisher for `push_to_hub` of `finetune`, a room below that of the Hub."""
    from .hub.publish import HubPublisher

    return HubPublisher()


def print_completion(argv: Sequence[str] | None = None) -> None:
    """Command `completion`: print a script for a shell, made from the options of every command.

    It is made once and kept in a file: argcomplete would start Python and PyTorch at every tab.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] in (["-h"], ["--help"]):
        print(f"usage: retfound completion {' | '.join(SHELLS)}\n\nPrint a script to keep; --help is its only option.")
        raise SystemExit(0)
    if len(words) != 1 or words[0] not in SHELLS:
        word = words[-1] if words else None
        unknown = f"unknown option {word}; give" if words else "give"
        message = f"{unknown} the shell: {', '.join(SHELLS)}"
        raise BadArgumentError(message, field="shell", value=word, accepted=SHELLS)
    print(SHELLS[words[0]]({name: parser_of(command(name)) for name in COMMANDS if name != "completion"}))


def _flags(parser: ArgumentParser) -> dict[str, list[str]]:
    """Long options of a command, with the values that each accepts; none where any is."""
    return {
        flag: [str(choice) for choice in action.choices or ()]
        for action in parser._actions
        for flag in action.option_strings
        if flag.startswith("--")
    }


def _bash(parsers: dict[str, ArgumentParser]) -> str:
    options, values = [], []
    for name, parser in parsers.items():
        flags = _flags(parser)
        options.append(f"        {name}) words={shlex.quote(' '.join(flags))} ;;")
        values += [
            f"        {name}/{flag}) words={shlex.quote(' '.join(choices))} ;;"
            for flag, choices in flags.items() if choices
        ]  # fmt: skip
    return "\n".join(
        [
            "# Completion of retfound for bash, and for zsh after `autoload -U bashcompinit && bashcompinit`.",
            "_retfound() {",
            '    local word="${COMP_WORDS[COMP_CWORD]}" words=""',
            '    if [ "$COMP_CWORD" -eq 1 ]; then',
            f'        COMPREPLY=($(compgen -W {shlex.quote(" ".join(COMMANDS))} -- "$word"))',
            "        return",
            "    fi",
            '    case "${COMP_WORDS[1]}/${COMP_WORDS[COMP_CWORD-1]}" in',
            *values,
            f"        completion/completion) words={shlex.quote(' '.join(SHELLS))} ;;",
            "    esac",
            '    [ -n "$words" ] || case "$word" in -*) case "${COMP_WORDS[1]}" in',
            *options,
            "    esac ;; esac",
            '    COMPREPLY=($(compgen -W "$words" -- "$word"))',
            "}",
            "complete -o default -F _retfound retfound  # by default names of files",
        ]
    )


def _zsh(parsers: dict[str, ArgumentParser]) -> str:
    return f"#compdef retfound\nautoload -U +X bashcompinit && bashcompinit\n{_bash(parsers)}"


def _fish(parsers: dict[str, ArgumentParser]) -> str:
    lines = ["# Completion of retfound for fish."]
    for name, row in COMMANDS.items():
        lines.append(f"complete -c retfound -n __fish_use_subcommand -f -a {name} -d {_fish_text(row.line)}")
    for name, parser in parsers.items():
        for action in parser._actions:
            for flag in action.option_strings:
                if flag.startswith("--"):
                    line = f"complete -c retfound -n '__fish_seen_subcommand_from {name}' -l {flag[2:]}"
                    line += f" -x -a {_fish_text(' '.join(map(str, action.choices)))}" if action.choices else ""
                    lines.append(line)
    lines.append(f"complete -c retfound -n '__fish_seen_subcommand_from completion' -f -a '{' '.join(SHELLS)}'")
    return "\n".join(lines)


def _fish_text(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


SHELLS: dict[str, Callable[[dict[str, ArgumentParser]], str]] = {"bash": _bash, "zsh": _zsh, "fish": _fish}


if __name__ == "__main__":
    sys.exit(main())
