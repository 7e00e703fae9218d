"""Errors that a user is meant to read: one line each, with attributes for programs.

A message names fields in backticks (`level` or `level='eye'`); the commands turn them into flags.
"""

import difflib
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

LONGEST = 200  # characters that a message repeats of what it was given
# Characters that a terminal does not show but obeys, and those that would make two lines of one.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
LONG_PART = re.compile(rf"(?<!\w)'[^']{{{LONGEST},}}'(?!\w)|`[^`]{{{LONGEST},}}`|\S{{{LONGEST + 1},}}")


class RetFoundError(ValueError):
    """Bad input, said in one line: what is wrong, the value, what is accepted and the fix.

    Commands print the message alone and exit with status 2; a library caller sees an ordinary `ValueError`. Keyword
    arguments become attributes, and survive pickling from a worker process.
    """

    def __init__(self, message: str, **attributes: Any):
        # Of a value that is long the message repeats the ends, and the attribute has the whole.
        for value in attributes.values():
            for part in value if isinstance(value, (list, tuple)) else [value]:
                if len(text := str(part)) > LONGEST:
                    message = message.replace(text, shown(text))
        message = CONTROL.sub(lambda found: " " if found[0].isspace() else repr(found[0])[1:-1], message)
        super().__init__(_without_long_words(message))
        self.__dict__.update(attributes)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), str(self), dict(self.__dict__))


class BadArgumentError(RetFoundError):
    """Argument with a value that is not accepted.

    Attributes:
        field: name of the argument.
        value: the offending value.
        accepted: accepted values, where they can be listed.
    """

    field: str
    value: Any
    accepted: tuple[Any, ...] = ()

    def __init__(self, message: str, *, field: str, value: Any = None, accepted: Iterable[Any] = ()):
        super().__init__(message, field=field, value=value, accepted=tuple(accepted))


class BadDataError(RetFoundError):
    """Images, tables or predictions that cannot be used.

    Attributes:
        rows: offending rows, by id or number, where single rows are to blame.
        source: the table, folder or data set.
    """

    rows: tuple[Any, ...] = ()
    source: str = ""

    def __init__(self, message: str, *, rows: Iterable[Any] = (), source: Any = ""):
        super().__init__(message, rows=tuple(rows), source=str(source))


class UnreadableImageError(BadDataError):
    """Image file that cannot be read.

    Attributes:
        path: of the image.
        reason: why, without the path.
    """

    path: str
    reason: str

    def __init__(self, message: str, *, path: Any = "", reason: str = ""):
        super().__init__(message, rows=[str(path)] if path else [], source=path)
        self.path, self.reason = str(path), reason or message


class BadModelError(RetFoundError):
    """Model folder, checkpoint or adapter that cannot be used.

    Attributes:
        model: folder, file or Hub id.
    """

    model: str

    def __init__(self, message: str, *, model: Any = ""):
        super().__init__(message, model=str(model))


class DivergedError(RetFoundError):
    """Training whose loss is no longer finite.

    Attributes:
        step: optimiser step.
        ids: images of that step.
    """

    step: int
    ids: tuple[str, ...]

    def __init__(self, message: str, *, step: int, ids: Iterable[str] = ()):
        super().__init__(message, step=step, ids=tuple(ids))


class HubAccessError(RetFoundError):
    """Hub that cannot be reached, or refuses.

    Attributes:
        repo_id: repository.
        status: HTTP status, None where there was no answer.
    """

    repo_id: str
    status: int | None

    def __init__(self, message: str, *, repo_id: str, status: int | None = None):
        super().__init__(message, repo_id=repo_id, status=status)


class OutputError(RetFoundError):
    """Output folder that may not or cannot be written.

    Attributes:
        path: the folder.
        reason: why, without the path, where the system says so.
    """

    path: Path
    reason: str = ""

    def __init__(self, message: str, *, path: str | Path):
        super().__init__(message, path=Path(path))


class MissingPackageError(RetFoundError):
    """Optional dependency that is not installed.

    Attributes:
        package, extra: the package, and the extra of retfound-hf that brings it, empty where none does.
    """

    package: str
    extra: str

    def __init__(self, package: str, extra: str = ""):
        wanted = f"'retfound-hf[{extra}]'" if extra else package
        message = f"{package} is not installed; it comes with: pip install {wanted}"
        super().__init__(message, package=package, extra=extra)


def _rebuild(kind: type[RetFoundError], message: str, attributes: dict[str, Any]) -> RetFoundError:
    error = kind.__new__(kind, message)
    error.args = (message,)
    error.__dict__.update(attributes)
    return error


def require(field: str, value: Any, accepted: Collection[Any]) -> None:
    """Raise `BadArgumentError` unless `value` is one of `accepted`; the nearest accepted one is named."""
    if value not in accepted:
        names = ", ".join(map(str, accepted))
        raise BadArgumentError(
            f"`{field}={shown(value)}` is not accepted{nearest(str(value), map(str, accepted))}; accepted: {names}",
            field=field, value=value, accepted=accepted,
        )  # fmt: skip


def require_range(field: str, value: float, low: float, high: float = float("inf"), open_low: bool = False) -> None:
    """Raise `BadArgumentError` unless `low <= value <= high` (`low < value` with `open_low`); NaN is refused."""
    if not (low < value if open_low else low <= value) or not value <= high:
        bounds = f"above {low:g}" if open_low else f"at least {low:g}"
        upper = "" if high == float("inf") else f" and at most {high:g}"
        raise BadArgumentError(f"`{field}={value}` must be {bounds}{upper}", field=field, value=value)


def missing_extra(package: str, extra: str) -> MissingPackageError:
    """The error for an optional dependency that is not installed."""
    return MissingPackageError(package, extra)


def one_line(error: BaseException, limit: int = 300) -> str:
    """Another library's error on one line of at most `limit` characters; its type where it says nothing."""
    return _without_long_words(" ".join(str(error).split()))[:limit] or type(error).__name__


def shown(value: object) -> str:
    """A value as messages repeat it: of one that is longer than `LONGEST` characters, the ends and the length."""
    text = str(value)
    return text if len(text) <= LONGEST else f"{text[:100]}...{text[-40:]} ({len(text):,} characters)"


def _without_long_words(message: str) -> str:
    """A message whose words and quotations, such as a path or base64, are no longer than `LONGEST`."""
    return LONG_PART.sub(lambda found: shown(found[0]), message)


def nearest(name: str, accepted: Iterable[str]) -> str:
    """`; did you mean X?` for a mistyped name, or an empty string when none is near."""
    found = difflib.get_close_matches(name, list(accepted), n=1)
    return f"; did you mean {found[0]}?" if found else ""


def join_names(names: Iterable[object], limit: int = 5) -> str:
    """The first `limit` names, and the number of the others."""
    texts = [shown(name) for name in names]
    return ", ".join(texts[:limit]) + (f" and {len(texts) - limit:,} more" if len(texts) > limit else "")
