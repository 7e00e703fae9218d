"""The one error type that a user is meant to read."""


class RetFoundError(ValueError):
    """Bad input, said in one line: what is wrong, the value, what is accepted and the fix.

    Commands print the message alone and exit with status 2; a library caller sees an ordinary `ValueError`.
    """


def missing_extra(package: str, extra: str) -> RetFoundError:
    """The error for an optional dependency that is not installed, with the exact command that brings it."""
    return RetFoundError(f"{package} is not installed; it comes with: pip install 'retfound-hf[{extra}]'")
