"""Command arguments: dataclasses through `HfArgumentParser`, a YAML or JSON file in place of flags, or keywords.

This module alone knows that fields become flags: errors name fields in backticks, and `run_command` writes the dashes.
"""

import copy
import dataclasses
import errno
import importlib.util
import itertools
import json
import logging
import math
import re
import sys
from argparse import Action, ArgumentDefaultsHelpFormatter, ArgumentParser
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from .errors import (
    BadArgumentError,
    BadDataError,
    MissingPackageError,
    RetFoundError,
    nearest,
    one_line,
    require,
    require_range,
    shown,
)
from .files import read_json

MAX_YAML, MAX_DIGITS = 2**18, 100  # bytes or values of a file that a person writes; characters of a number in it
CONFIG_SUFFIXES = (".yaml", ".yml", ".json")
# `level`, `level=eye` or `level='eye'` in an error's message.
FIELD = re.compile(r"`(\w+)(?:=([^`]*))?`")
_fields: dict[str, str] = {}  # of the command that runs in this process, and how each is written there
_values: dict[str, Any] = {}  # of its options


def option(default: Any, help: str, low: float | None = None, high: float = math.inf, **ends: float) -> Any:
    """Dataclass field with a default value, the text of its flag, and the numbers that `check_ranges` accepts.

    Args:
        default: the value, or a function without arguments that makes it.
        help: text of the flag.
        low, high: smallest and largest number; None for `low` accepts everything.
        ends: `above` and `below`, open ends in place of them.
    """
    made = {"default_factory": default} if callable(default) else {"default": default}
    bounded = low is not None or ends
    return dataclasses.field(**made, metadata={"help": help, **({"range": (low, high, ends)} if bounded else {})})


def check_ranges(options: Any) -> None:
    """Raise `BadArgumentError` for a number outside the range of its `option`; None is not set."""
    for each in dataclasses.fields(options):
        name, value = each.name, getattr(options, each.name)
        if value is None or "range" not in each.metadata:
            continue
        low, high, ends = each.metadata["range"]
        above, below = ends.get("above"), ends.get("below", math.inf)
        require_range(name, value, low if above is None else above, high, open_low=above is not None)
        if not value < below:
            raise BadArgumentError(f"`{name}={value}` must be below {below:g}", field=name, value=value)


# Trackers of training with an extra of their name; of the others, the packages that are called otherwise.
TRACKERS = ("tensorboard", "trackio", "wandb")
PACKAGES = {"azure_ml": "azureml-core", "flyte": "flytekit"}


def check_trackers(report_to: str | Iterable[str] | None, known: Iterable[str], installed: Iterable[str]) -> list[str]:
    """Trackers that `report_to` asks for, without "none"; ["all"] for those that are installed.

    Args:
        report_to: one name or several.
        known: names of the trackers that the engine of the training has.
        installed: those whose package it found.

    Raises:
        BadArgumentError: a name that the engine does not know.
        MissingPackageError: one whose package is not installed.
    """
    names = [report_to] if isinstance(report_to, str) else list(dict.fromkeys(report_to or []))
    # Those that have an extra come first in what a message says is accepted.
    accepted = list(dict.fromkeys(["none", "all", *TRACKERS, *sorted(known)]))
    for name in names:
        require("report_to", name, accepted)
    found = {"none", "all", *installed}
    for name in names:
        if name not in found and not _is_there(package := PACKAGES.get(name, name)):
            raise MissingPackageError(package, name if name in TRACKERS else "")
    return ["all"] if "all" in names else [name for name in names if name != "none"]


@contextmanager
def tracker_faults(report_to: Iterable[str]) -> Iterator[None]:
    """Turn errors of starting trackers within the block, such as a missing login, into `BadArgumentError`."""
    try:
        yield
    except Exception as error:
        names = " ".join(report_to)
        message = f"a tracker of `report_to={names}` does not start: {one_line(error)}; log in to it, or leave it out"
        raise BadArgumentError(message, field="report_to", value=list(report_to)) from error


def _is_there(package: str) -> bool:
    """Whether a package can be imported; an engine does not look for all that it knows."""
    try:
        return importlib.util.find_spec(package.replace("-", "_")) is not None
    except ValueError:  # one that was put into sys.modules by hand
        return True


def parse_arguments(
    *types: type, argv: Sequence[str] | None = None, description: str = "", options_file: bool = True
) -> tuple[Any, ...]:
    """Parse command-line flags, or one YAML or JSON file optionally followed by flags that override it.

    Args:
        types: dataclasses whose fields are the options; a field with the metadata `"positional": True` takes its
            place instead of a flag.
        argv: the words after the command's name; `sys.argv[1:]` when None.
        description: shown above the options by `--help`.
        options_file: False for a command whose first word is a file of its own.

    Returns:
        One instance per type, in order.

    Raises:
        BadArgumentError: an unknown option (the nearest right one is named).
        RetFoundError: a value that a dataclass refuses.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if options_file and words and words[0].endswith(CONFIG_SUFFIXES) and not words[0].startswith("-"):
        words = _words_of_file(Path(words[0]), types) + words[1:]
    for each in (field for kind in types for field in dataclasses.fields(kind)):
        _fields[each.name] = each.name.upper() if each.metadata.get("positional") else f"--{each.name}"
    parser = _parser(types, description)
    if argv is _ASK_FOR_PARSER:
        raise _AskedForParser(parser)
    *parsed, unknown = parser.parse_args_into_dataclasses(
        args=words, return_remaining_strings=True, look_for_args_file=False
    )
    if unknown:
        known = [name for action in parser._actions for name in action.option_strings]
        raise _unknown_option(unknown[0], known)
    _values.clear()
    for each in parsed:
        _values.update((field.name, getattr(each, field.name, None)) for field in dataclasses.fields(each))
    return tuple(parsed)


def parsed_values() -> dict[str, Any]:
    """Options of the command that runs in this process, by the names of their fields."""
    return dict(_values)


class _AskedForParser(Exception):
    """Carries the parser of a command that is not run."""


_ASK_FOR_PARSER: Sequence[str] = ("<parser>",)


def parser_of(function: Callable[[Sequence[str] | None], Any]) -> ArgumentParser:
    """Parser of a command, which is not run: the command parses its words before it does anything."""
    try:
        function(_ASK_FOR_PARSER)
    except _AskedForParser as asked:
        return asked.args[0]
    raise TypeError(f"{function} parses no arguments")


def run_command(
    function: Callable[[Sequence[str] | None], Any], argv: Sequence[str] | None = None, quiet: bool = False
) -> int:
    """Run a command's function as a process does: 0 on success, 2 with a one-line reason on bad input.

    Args:
        function: of the command; it takes the words after its name.
        argv: these words.
        quiet: leave the notes out, not the warnings.
    """
    _hide_script_folder()
    try:
        with _notes_on_stderr(logging.WARNING if quiet else logging.INFO):
            function(argv)
    except RetFoundError as error:
        print(f"error: {with_flags(' '.join(str(error).split()), _fields)}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        print(f"error: {shown(error.filename)} is too long for the name of a file", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped: interrupted", file=sys.stderr)
        return 130
    return 0


def with_flags(message: str, fields: Mapping[str, str]) -> str:
    """`message` with its backticked `fields` as the command writes them: `level='eye'` becomes --level eye."""

    def flag(match: re.Match[str]) -> str:
        name, value = match.groups()
        if name not in fields:
            return match.group(0)
        return fields[name] if value is None else f"{fields[name]} {value.strip(chr(39))}"

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


class _WithFlags(logging.Formatter):
    """Notes that name options as the command writes them."""

    def format(self, record: logging.LogRecord) -> str:
        return with_flags(super().format(record), _fields)


@contextmanager
def _notes_on_stderr(least: int) -> Iterator[None]:
    """Print what the package logs from a level on, such as by what images were split, while a command runs."""
    log = logging.getLogger(__package__)
    handler, level = logging.StreamHandler(), log.level
    handler.setFormatter(_WithFlags())
    log.addHandler(handler)
    log.setLevel(least)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def _hide_script_folder() -> None:
    """Remove the running script's folder from the import path: its `evaluate.py` would hide the package `evaluate`."""
    script = Path(sys.argv[0]).resolve()
    if script.suffix == ".py" and sys.path and Path(sys.path[0]).resolve() == script.parent:
        del sys.path[0]


def _words_of_file(path: Path, types: Sequence[type]) -> list[str]:
    """Options of a YAML or JSON file as command-line words, so that both forms are checked alike."""
    if not path.is_file():
        raise RetFoundError(f"options file {path} does not exist")
    options = read_json(path, object) if path.suffix == ".json" else read_yaml(path)
    if not isinstance(options, dict):
        raise RetFoundError(f"options file {path} must map option names to values, found {type(options).__name__}")
    return option_words(options, types, str(path))


@cache
def _yaml_loader() -> Any:
    """Loader of files that people write: PyYAML's own silently keeps the last of equal keys and reads huge numbers."""
    import yaml  # not before it is needed

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            names = Counter((key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode))
            if repeated := [name for (_, name), count in names.items() if count > 1]:
                raise ValueError(f"key {shown(repeated[0])} is written twice, line {node.start_mark.line + 1} on")
            return super().construct_mapping(node, deep)

        def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
            if len(node.value) > MAX_DIGITS:
                raise ValueError(f"a number of {len(node.value):,} characters")
            return super().construct_yaml_int(node)

    Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_yaml_int)
    return Loader


def read_yaml(path: str | Path) -> Any:
    """Content of a YAML file that a person writes, such as options.

    Raises:
        BadDataError: no YAML in UTF-8, a key written twice, more than `MAX_YAML` bytes, or aliases of aliases that
            stand for more than `MAX_YAML` values.
    """
    import yaml

    path = Path(path)
    try:
        if path.stat().st_size > MAX_YAML:
            raise ValueError(f"it has more than {MAX_YAML:,} bytes")
        loader = _yaml_loader()(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        if _extent(node, {}) > MAX_YAML:
            raise ValueError(f"its aliases stand for more than {MAX_YAML:,} values")
        return None if node is None else loader.construct_document(node)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:  # also other encodings, and dates
        raise BadDataError(f"{path} is not valid YAML in UTF-8: {one_line(error)}", source=path) from error


def _extent(node: Any, known: dict[int, float]) -> float:
    """Values below a node, those of an alias each time that it occurs; infinite for one that holds itself."""
    if id(node) not in known:
        known[id(node)] = math.inf
        parts = node.value if isinstance(getattr(node, "value", None), list) else ()
        below = itertools.chain.from_iterable(part if isinstance(part, tuple) else (part,) for part in parts)
        known[id(node)] = 1 + sum(_extent(part, known) for part in below)
    return known[id(node)]


def option_words(options: Mapping[str, Any], types: Sequence[type], source: str) -> list[str]:
    """Command-line words of options by name.

    Args:
        options: name to value; None leaves an option out.
        types: dataclasses that have the options.
        source: place of the options, for errors.
    """
    fields = {field.name: field for kind in types for field in dataclasses.fields(kind)}
    positional: dict[str, str] = {}
    words: list[str] = []
    for name, value in options.items():
        if name not in fields:
            raise _unknown_option(f"--{name}", fields, f"in {source}: ")
        if value is None:
            continue
        if fields[name].metadata.get("positional"):
            positional[name] = str(value)
            continue
        words.append(f"--{name}")
        items = value if isinstance(value, list) else [value]
        words += [json.dumps(item) if isinstance(item, dict) else str(item) for item in items]
    # In the order of the command, whatever their order in the file.
    return [positional[name] for name in fields if name in positional] + words


class _Help(ArgumentDefaultsHelpFormatter):
    """Help that says which options are required, and the defaults of those that have one."""

    def _get_help_string(self, action: Action) -> str | None:
        if action.option_strings and action.required:
            return f"{action.help} (required)"
        if action.const is False:
            return f"turn --{action.dest} off"
        return action.help if action.default in (None, "", []) else super()._get_help_string(action)


def _parser(types: Sequence[type], description: str) -> Any:
    from transformers import HfArgumentParser  # takes a second: not before it is needed

    class Parser(HfArgumentParser):
        @staticmethod
        def _parse_dataclass_field(parser: Any, field: dataclasses.Field) -> None:
            if field.metadata.get("positional"):
                parser.add_argument(field.name, metavar=field.name.upper(), help=field.metadata["help"])
            else:
                field = copy.copy(field)  # without what argparse does not know
                known = {name: value for name, value in field.metadata.items() if name != "range"}
                field.metadata = MappingProxyType(known)
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
        formatter_class=_Help,
        allow_abbrev=False,
    )


def _unknown_option(word: str, known: Iterable[str], where: str = "") -> BadArgumentError:
    name = word.split("=")[0].removeprefix("--")
    # Without the dashes, which make every option look like every other.
    names = [option.removeprefix("--") for option in known]
    near = nearest(name, names).replace("mean ", "mean --") or "; --help lists the options"
    return BadArgumentError(f"{where}unknown option --{name}{near}", field=name, accepted=names)
