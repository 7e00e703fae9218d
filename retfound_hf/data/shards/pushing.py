"""Shards to the Hub, as a data set that `pretrain --train_data ORG/NAME` reads."""

from pathlib import Path

from ...runs.hub_errors import explained

# Of the rest, `run.json` and the records tell the paths of this machine.
PUSHED = ["data/train-*.parquet", "README.md", "dataset_info.json", "rejected.csv", "duplicates.csv"]


def push_shards(out: Path, repo_id: str, private: bool) -> str:
    """Upload what `prepare_images` wrote; a push that was cut off goes on, and shards that are gone here go there.

    Args:
        out: folder with all shards.
        repo_id: data set on the Hub, made if it is not there.
        private: whether a new one is; one that is there stays as it is.

    Returns:
        Its address.

    Raises:
        RetFoundError: no token, no right to write, no connection.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    with explained(repo_id, "pushed to"):
        url = api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo_id,
            repo_type="dataset",
            folder_path=out,
            allow_patterns=PUSHED,
            delete_patterns="data/train-*.parquet",
            commit_message="Images prepared with retfound prepare_images",
        )
    return str(url)
