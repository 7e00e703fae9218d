"""Access to the Hub: its errors as one line that says what to do, and a quick look-up of data sets."""

from collections.abc import Iterator
from contextlib import contextmanager

from .errors import HubAccessError, RetFoundError, one_line

LOGIN = "`hf auth login`, or the environment variable HF_TOKEN"


@contextmanager
def translate_hub_errors(repo_id: str, doing: str, token: str | None = None) -> Iterator[None]:
    """Turn errors of the Hub within the block into `HubAccessError`.

    Args:
        repo_id: repository that the block accesses.
        doing: past participle for the message: "`repo_id` cannot be `doing`".
        token: the token that the block uses, where it is not that of the environment or the login.
    """
    from huggingface_hub import constants, errors

    try:
        yield
    except RetFoundError:
        raise
    except errors.GatedRepoError as error:
        raise HubAccessError(_gated(repo_id), repo_id=repo_id, status=_status(error)) from error
    except errors.RepositoryNotFoundError as error:
        raise HubAccessError(
            f"{repo_id} does not exist on {constants.ENDPOINT}, or your token may not see it; check the name, and "
            f"log in with {LOGIN}", repo_id=repo_id, status=_status(error),
        ) from error  # fmt: skip
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError) as error:
        reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} cannot be reached"
        raise HubAccessError(
            f"{repo_id} cannot be {doing.split()[0]}: {reason}; try again with a connection, or name a mirror in "
            "HF_ENDPOINT", repo_id=repo_id,
        ) from error  # fmt: skip
    except errors.HfHubHTTPError as error:
        raise HubAccessError(_refused(repo_id, doing, error, token), repo_id=repo_id, status=_status(error)) from error
    except errors.LocalTokenNotFoundError as error:
        raise HubAccessError(f"there is no token for {repo_id}; log in with {LOGIN}", repo_id=repo_id) from error
    except Exception as error:
        if not is_connection_error(error):
            raise
        root: BaseException = error
        while root.__cause__ is not None:
            root = root.__cause__
        raise HubAccessError(
            f"the connection to {constants.ENDPOINT} broke off ({type(root).__name__}: {one_line(root, 200)}); "
            "nothing half-done is left; run the same command again to continue with what has not arrived yet",
            repo_id=repo_id,
        ) from error


def _status(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _gated(repo_id: str) -> str:
    from huggingface_hub import constants, get_token

    page = f"{constants.ENDPOINT}/{repo_id}"
    if get_token() is None:
        return f"{repo_id} is gated and there is no token; ask for access on {page}, then log in with {LOGIN}"
    return (
        f"{repo_id} is gated and your token has no access to it yet; ask on {page}, wait for the approval, and use a "
        "token of that account that may read gated repositories"
    )


def _refused(repo_id: str, doing: str, error: Exception, token: str | None) -> str:
    from huggingface_hub import get_token

    said = getattr(error, "server_message", None) or str(error).splitlines()[0]
    cannot = f"{repo_id} cannot be {doing.split()[0]}"
    if _status(error) == 401:
        reason = "the token is not valid" if token or get_token() else "there is no token"
        return f"{cannot}: {reason}; log in with {LOGIN}"
    if _status(error) == 403:
        return f"{cannot}: the token lacks the right to ({said}); use one that may write"
    return f"{cannot}: {said}"


def is_connection_error(error: BaseException | None) -> bool:
    """Whether a broken connection is at the root of an error, whichever HTTP library reported it."""
    while error is not None:
        names = {kind.__name__ for kind in type(error).__mro__}
        if names & {"TransportError", "ConnectionError", "TimeoutError", "ProtocolError"}:
            return True
        error = error.__cause__ or error.__context__
    return False


def look_up_data_set(repo_id: str) -> None:
    """Ask the Hub once for a data set that is not cached; nothing is asked offline, or for a name that is no Hub id.

    The datasets library would ask six times over half a minute, which is long for a mistyped path.

    Raises:
        Exception: as the library raises it: no such data set, no access to it, no network.
    """
    from huggingface_hub import HfApi, constants, errors, try_to_load_from_cache, utils

    if constants.HF_HUB_OFFLINE:
        return
    try:
        utils.validate_repo_id(repo_id)
    except errors.HFValidationError:
        return
    if try_to_load_from_cache(repo_id, "README.md", repo_type="dataset") is None:
        HfApi().dataset_info(repo_id, timeout=10)
