"""Command arguments: dataclasses through `HfArgumentParser`, a YAML or JSON file in place of flags, or keywords.

This module alone knows that fields become flags: errors name fields in backticks, and `run_command` writes the dashes.
"""

import dataclasses
import json
import re
import sys
from argparse import ArgumentDefaultsHelpFormatter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import RetFoundError, nearest

CONFIG_SUFFIXES = (".yaml", ".yml", ".json")
# `level`, `level=eye` or `level='eye'` in an error's message.
FIELD = re.compile(r"`(\w+)(?:=([^`]*))?`")
_fields: set[str] = set()  # of the command that runs in this process


def parse_arguments(
    *types: type, argv: Sequence[str] | None = None, description: str = "", options_file: bool = True
) -> tuple[Any, ...]:
    """Parse command-line flags, or one YAML or JSON file optionally followed by flags that override it.

    Args:
        types: dataclasses whose fields are the options; a field whose metadata says `"positional": True` is given
            by its place instead of a flag.
        argv: the words after the command's name; `sys.argv[1:]` when None.
        description: shown above the options by `--help`.
        options_file: false for a command whose first word is a file of its own.

    Returns:
        One instance per type, in order.

    Raises:
        RetFoundError: an unknown option (the nearest right one is named), or a value a dataclass refuses.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if options_file and words and words[0].endswith(CONFIG_SUFFIXES) and not words[0].startswith("-"):
        words = _words_of_file(Path(words[0]), types) + words[1:]
    _fields.update(field.name for kind in types for field in dataclasses.fields(kind))
    parser = _parser(types, description)
    *parsed, unknown = parser.parse_args_into_dataclasses(
        args=words, return_remaining_strings=True, look_for_args_file=False
    )
    if unknown:
        known = [name for action in parser._actions for name in action.option_strings]
        raise RetFoundError(_unknown_option(unknown[0], known))
    return tuple(parsed)


def run_command(function: Callable[[Sequence[str] | None], Any], argv: Sequence[str] | None = None) -> int:
    """Run a command's function as a process does: 0 on success, 2 with a one-line reason on bad input."""
    _hide_script_folder()
    try:
        function(argv)
    except RetFoundError as error:
        print(f"error: {with_flags(' '.join(str(error).split()), _fields)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped: interrupted", file=sys.stderr)
        return 130
    return 0


def with_flags(message: str, fields: Collection[str]) -> str:
    """`message` with its backticked `fields` written as flags: `level='eye'` becomes --level eye."""

    def flag(match: re.Match[str]) -> str:
        name, value = match.groups()
        if name not in fields:
            return match.group(0)
        return f"--{name}" if value is None else f"--{name} {value.strip(chr(39))}"

    return FIELD.sub(flag, message)


def build_arguments(types: Sequence[type], options: Mapping[str, Any]) -> tuple[Any, ...]:
    """One instance per dataclass of `types` from keyword arguments; a field of two types goes to both.

    Raises:
        TypeError: an option that no type has, with the nearest one.
        RetFoundError: a value that a type refuses.
    """
    names = [{field.name for field in dataclasses.fields(kind) if field.init} for kind in types]
    for name in options:
        if not any(name in known for known in names):
            raise TypeError(f"unknown option {name!r}{nearest(name, set().union(*names))}")
    return tuple(
        kind(**{name: value for name, value in options.items() if name in known})
        for kind, known in zip(types, names, strict=True)
    )


def _hide_script_folder() -> None:
    """Take the folder of the running script off the import path.

    Python puts it first, and the `evaluate.py` in it would hide the package `evaluate`.
    """
    script = Path(sys.argv[0]).resolve()
    if script.suffix == ".py" and sys.path and Path(sys.path[0]).resolve() == script.parent:
        del sys.path[0]


def _words_of_file(path: Path, types: Sequence[type]) -> list[str]:
    """The options of a YAML or JSON file as command-line words, so that both forms are checked alike."""
    if not path.is_file():
        raise RetFoundError(f"options file {path} does not exist")
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        try:
            options = json.loads(text)
        except json.JSONDecodeError as error:
            raise RetFoundError(f"options file {path} is not valid JSON: {error}") from error
    else:
        import yaml

        try:
            options = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise RetFoundError(f"options file {path} is not valid YAML: {error}") from error
    if not isinstance(options, dict):
        raise RetFoundError(f"options file {path} must map option names to values, found {type(options).__name__}")
    return option_words(options, types, str(path))


def option_words(options: Mapping[str, Any], types: Sequence[type], source: str) -> list[str]:
    """Options by name as the words of a command line; `source` says in errors where they stand."""
    fields = {field.name: field for kind in types for field in dataclasses.fields(kind)}
    positional: dict[str, str] = {}
    words: list[str] = []
    for name, value in options.items():
        if name not in fields:
            raise RetFoundError(
                f"in {source}: {_unknown_option('--' + str(name), ['--' + known for known in fields])}"
            )
        if value is None:
            continue
        if fields[name].metadata.get("positional"):
            positional[name] = str(value)
            continue
        words.append(f"--{name}")
        words += [json.dumps(item) if isinstance(item, dict) else str(item) for item in _listed(value)]
    # By the place that the command gives them, whatever their order in the file.
    return [positional[name] for name in fields if name in positional] + words


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _parser(types: Sequence[type], description: str) -> Any:
    from transformers import HfArgumentParser  # takes a second: not before it is needed

    class Parser(HfArgumentParser):
        @staticmethod
        def _parse_dataclass_field(parser: Any, field: dataclasses.Field) -> None:
            if field.metadata.get("positional"):
                parser.add_argument(field.name, metavar=field.name.upper(), help=field.metadata["help"])
            else:
                HfArgumentParser._parse_dataclass_field(parser, field)

        def error(self, message: str) -> None:
            # One line instead of argparse's message under a page of usage.
            raise RetFoundError(message)

    fields = [field for kind in types for field in dataclasses.fields(kind)]
    positional = [field.name.upper() for field in fields if field.metadata.get("positional")]
    return Parser(
        types,
        description=description,
        # argparse's own line would list each of Trainer's 150 options before a word of help.
        usage=" ".join(["%(prog)s", *positional, "[options]"]),
        formatter_class=ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )


def _unknown_option(word: str, known: Sequence[str]) -> str:
    name = word.split("=")[0]
    # Without the dashes, which make every option look like every other.
    near = nearest(name.removeprefix("--"), [option.removeprefix("--") for option in known])
    return f"unknown option {name}{near.replace('mean ', 'mean --', 1) or '; --help lists the options'}"
