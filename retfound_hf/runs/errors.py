"""The one error type that a user is meant to read."""

import difflib
from collections.abc import Iterable


class RetFoundError(ValueError):
    """Bad input, said in one line: what is wrong, the value, what is accepted and the fix.

    Commands print the message alone and exit with status 2; a library caller sees an ordinary `ValueError`.
    """


def missing_extra(package: str, extra: str) -> RetFoundError:
    """The error for an optional dependency that is not installed, with the exact command that brings it."""
    return RetFoundError(f"{package} is not installed; it comes with: pip install 'retfound-hf[{extra}]'")


def one_line(error: BaseException, limit: int = 300) -> str:
    """What another library's error says, on one line and not too long; its type where it says nothing."""
    return " ".join(str(error).split())[:limit] or type(error).__name__


def nearest(name: str, accepted: Iterable[str]) -> str:
    """`; did you mean X?` for a mistyped name, or an empty string when none is near."""
    found = difflib.get_close_matches(name, list(accepted), n=1)
    return f"; did you mean {found[0]}?" if found else ""
