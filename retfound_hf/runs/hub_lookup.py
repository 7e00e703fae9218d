"""Whether a data set that is not here is on the Hub: asked once."""


def look_up_data_set(repo_id: str) -> None:
    """Ask the Hub for a data set of which nothing is cached here; nothing is asked offline or for what is no Hub id.

    Its library would ask six times over half a minute, which is long for a mistyped path.

    Raises:
        Exception: what the library raises: no such data set, no access to it, no network.
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
