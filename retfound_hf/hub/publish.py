"""Publishing of a finished folder to the Hub in one commit, and the command `publish`."""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..errors import RetFoundError
from ..files import write_json
from ..hub_access import translate_hub_errors
from ..options import parse_arguments
from .card_check import check_card, read_card
from .contents import SUBGROUPS, Contents, check_licence, hide_small_groups, may_be_published, read_contents, read_json
from .remote_code import MODEL_CODE, PROCESSOR_MAP, bundle

# Where a snippet loads a folder by its name, which need not be the folder's any more; ids of the Hub have a slash.
LOADED = re.compile(r"""(\bfrom_pretrained\((?:\w+, *)?|\bload_\w+\(|\bmodel=)(["'])[^"'/\n]+\2""")


@contextmanager
def staged(contents: Contents, repo_id: str, base_model: str | None = None) -> Iterator[Path]:
    """Yield a temporary folder with all that is published under `repo_id`.

    Args:
        base_model: Hub id of what it was made from, for the card; for an adapter, the model that it is loaded onto.

    Raises:
        RetFoundError: an adapter whose base nobody else can load.
    """
    with tempfile.TemporaryDirectory(prefix=".publish-", dir=contents.folder) as name:
        stage = Path(name)
        for path in contents.files:
            (stage / path).parent.mkdir(parents=True, exist_ok=True)
            _link_or_copy(contents.folder / path, stage / path)
            if Path(path).name == SUBGROUPS:
                hide_small_groups(stage / path)
        for path in stage.glob("*config.json"):
            write_json(path, _without_paths(read_json(path)))
        _add_code(contents, stage)
        if contents.kind == "adapter":
            _name_base(stage, base_model)
        _rewrite_card(contents, stage, repo_id, base_model)
        yield stage


def _link_or_copy(source: Path, target: Path) -> None:
    if source.suffix != ".safetensors":
        shutil.copyfile(source, target)  # may be rewritten
        return
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def _without_paths(value: Any) -> Any:
    """A configuration without the places, on this machine, that it and those within it were loaded from."""
    if isinstance(value, dict):
        return {key: _without_paths(item) for key, item in value.items() if key != "_name_or_path"}
    return [_without_paths(item) for item in value] if isinstance(value, list) else value


def _add_code(contents: Contents, stage: Path) -> None:
    """Name the code files in the configurations and write them, as far as the classes are not stock ones."""
    entries = []
    processor = read_json(stage / "preprocessor_config.json")
    if processor.get("image_processor_type") == "RetFoundImageProcessor":
        entries.append("models/image_processing.py")
        write_json(stage / "preprocessor_config.json", processor | {"auto_map": PROCESSOR_MAP})
    if contents.config.get("model_type") in MODEL_CODE:
        needed, classes = MODEL_CODE[contents.config["model_type"]]
        entries += needed
        lacking = {"AutoModelForPreTraining"} if contents.config.get("encoder_only") else set()
        classes = {auto: name for auto, name in classes.items() if auto not in lacking}
        write_json(stage / "config.json", read_json(stage / "config.json") | {"auto_map": classes})
    for name, text in bundle(entries).items():
        (stage / name).write_text(text, encoding="utf-8")


def _name_base(stage: Path, base_model: str | None) -> None:
    config = read_json(stage / "adapter_config.json")
    base = base_model or config.get("base_model_name_or_path")
    if not base or not is_hub_id(base):
        raise RetFoundError(
            f"the adapter was made on {base or 'an unknown model'}, which is no Hub id: nobody else could load it; "
            "publish that folder first, then this one with --base_model ORG/NAME"
        )
    write_json(stage / "adapter_config.json", config | {"base_model_name_or_path": base})


def _rewrite_card(contents: Contents, stage: Path, repo_id: str, base_model: str | None) -> None:
    """Let the snippets load by name, and the metadata name bases that exist on the Hub."""
    from huggingface_hub import ModelCard

    path = stage / "README.md"
    text = LOADED.sub(rf'\1"{repo_id}"', path.read_text(encoding="utf-8"))
    card = ModelCard(text, ignore_metadata_errors=True)
    bases = _ids(base_model or card.data.to_dict().get("base_model"))
    if contents.kind == "adapter":
        bases = [read_json(stage / "adapter_config.json")["base_model_name_or_path"]]
    if bases:
        card.data.base_model = bases[0] if len(bases) == 1 else bases
        if contents.kind == "adapter" or base_model:
            card.data.base_model_relation = "adapter" if contents.kind == "adapter" else "finetune"
    elif "base_model" in card.data.to_dict():
        del card.data.base_model
    path.write_text(str(card), encoding="utf-8")


def _ids(named: Any) -> list[str]:
    return [base for base in ([named] if isinstance(named, str) else named or []) if is_hub_id(base)]


def is_hub_id(name: str) -> bool:
    """Whether a name can be a repository of the Hub, and is not a folder here."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None and not Path(name).exists()


def client(token: str | None = None) -> Any:
    """The Hub's client, with the login's token where none is given."""
    from huggingface_hub import HfApi

    return HfApi(token=token, library_name="retfound_hf")


def space_id(repo_id: str) -> str:
    """The Space of a model's web page."""
    return f"{repo_id}-page"


def check_private(api: Any, repo_id: str, private: bool, space: bool) -> bool:
    """Whether the model, and its page, have to be private: where that is asked for, or where the model is already.

    Raises:
        RetFoundError: a public repository or Space in which they would lie open to all.
    """
    now = _is_private(api, repo_id, "model")
    if private and now is False:
        raise RetFoundError(f"{repo_id} exists and is public, and --private was given; nothing was sent")
    private = private or now is True
    if private and space and _is_private(api, space_id(repo_id), "space") is False:
        raise RetFoundError(
            f"the Space {space_id(repo_id)} exists and is public, and {repo_id} is private; nothing was sent: make "
            "the Space private or remove it, or leave --space out"
        )
    return private


def upload_model(api: Any, stage: Path, repo_id: str, private: bool, revision: str | None) -> str:
    """Send a staged folder, with a tag if `revision` names one, and return the address of the version."""
    url = api.create_repo(repo_id, private=private or None, exist_ok=True)
    if revision is not None and revision in {tag.name for tag in api.list_repo_refs(repo_id).tags}:
        raise RetFoundError(f"{repo_id} has a version {revision} already, which stays as it is; choose another name")
    commit = api.upload_folder(
        repo_id=repo_id,
        folder_path=stage,
        commit_message=f"Publish {revision or stage.parent.name}",
        delete_patterns=[escape(path) for path in api.list_repo_files(repo_id) if may_be_published(path)],
    )
    if revision is None:
        return str(url)
    api.create_tag(repo_id, tag=revision, revision=commit.oid)
    return f"{url}/tree/{revision}"


def upload_page(api: Any, page: Path, repo_id: str, private: bool) -> str:
    """Put the web page of a published model, written to the folder `page`, up as a Space; return its address."""
    name = space_id(repo_id)
    with translate_hub_errors(name, "published", api.token):
        url = api.create_repo(name, repo_type="space", space_sdk="gradio", private=private or None, exist_ok=True)
        api.upload_folder(
            repo_id=name,
            repo_type="space",
            folder_path=page,
            commit_message=f"Page of {repo_id}",
            delete_patterns=["retfound_hf/*"],
        )
        return str(url)


def _is_private(api: Any, repo_id: str, kind: str) -> bool | None:
    """None for a repository that does not exist."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        return api.repo_info(repo_id, repo_type=kind).private
    except RepositoryNotFoundError:
        return None


def publish(
    folder: str | Path,
    repo_id: str,
    private: bool = False,
    dry_run: bool = False,
    revision: str | None = None,
    base_model: str | None = None,
    space: bool = False,
    token: str | None = None,
) -> str | None:
    """Check a folder and upload it.

    Args:
        folder: a model or adapter folder with its card.
        repo_id: `ORG/NAME`.
        private: make the repository, and the Space, private when new; a public one that exists is refused.
        dry_run: check, build and list what would be uploaded, without any connection.
        revision: tag of this version, which must be new.
        base_model: Hub id of what the model was made from, where its card names a folder.
        space: put the web page of the model up too, as the Space `repo_id`-page.
        token: of the Hub; that of the environment or the login without one.

    Returns:
        The address of the version, or None for a dry run.

    Raises:
        RetFoundError: whatever a check or the Hub refuses.
    """
    if not is_hub_id(repo_id):
        raise RetFoundError(f"--repo_id {repo_id!r} is no name of a repository; accepted: ORG/NAME")
    contents = read_contents(folder)
    if space and not contents.is_classifier:
        raise RetFoundError(f"--space: the page shows a classifier, and {folder} is none; leave --space out")
    metadata, text = read_card(contents.folder)
    licence = check_licence(contents, metadata, base_model)
    check_card(contents, metadata, text)
    with staged(contents, repo_id, base_model) as stage, TemporaryDirectory() as page:
        read_card(stage)
        if space:
            from ..app.space import write_space

            write_space(page, repo_id, license=licence)
        print(listing(contents, stage))
        if dry_run:
            also = f", and its page to the Space {space_id(repo_id)}" if space else ""
            print(f"\nDry run: nothing was sent. Without --dry_run this goes to {repo_id}{also}.")
            return None
        api = client(token)
        with translate_hub_errors(repo_id, "published", token):
            private = check_private(api, repo_id, private, space)
            url = upload_model(api, stage, repo_id, private, revision)
        if space:
            print(upload_page(api, Path(page), repo_id, private))
        return url


def listing(contents: Contents, stage: Path) -> str:
    """The files with their sizes, and what is left out with the reason."""
    paths = sorted(path for path in stage.rglob("*") if path.is_file())
    rows = [(path.relative_to(stage).as_posix(), path.stat().st_size) for path in paths]
    width = max(len(name) for name, _ in rows)
    lines = [f"  {name.ljust(width)}  {size_text(size):>9}" for name, size in rows]
    lines.append(f"  {f'{len(rows)} files'.ljust(width)}  {size_text(sum(size for _, size in rows)):>9}")
    reasons: dict[str, list[str]] = {}
    for path, reason in contents.left_out.items():
        reasons.setdefault(reason, []).append(path)
    lines += [
        f"  left out ({reason}): {', '.join(found[:4])}{f' and {len(found) - 4} more' if len(found) > 4 else ''}"
        for reason, found in reasons.items()
    ]
    return "\n".join(lines)


def size_text(size: int) -> str:
    """Bytes in decimal units, as the Hub shows them."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.2f} {unit}"
    return f"{size} B"


class HubPublisher:
    """Publishes the folder of a run; the repository is the user's own unless an organisation is named."""

    def check(self, token: str | None = None) -> None:
        """Raise RetFoundError without a connection or a token that the Hub knows: `--hub_token`, or the login's."""
        _user(token)

    def push(
        self, folder: str, repo_id: str | None, private: bool | None = None, token: str | None = None
    ) -> str | None:
        """Publish `folder` as `repo_id` (`--hub_model_id`), by default under the folder's name."""
        repo_id = repo_id or Path(folder).resolve().name
        repo_id = repo_id if "/" in repo_id else f"{_user(token)}/{repo_id}"
        return publish(folder, repo_id, private=bool(private), token=token)


def _user(token: str | None) -> str:
    from huggingface_hub import HfApi

    with translate_hub_errors("the run", "published", token):
        return HfApi(token=token).whoami()["name"]


@dataclass
class PublishArguments:
    folder: str = field(metadata={"positional": True, "help": "finished model or adapter folder"})
    repo_id: str = field(metadata={"help": "repository on the Hub: ORG/NAME"})
    private: bool = field(default=False, metadata={"help": "make a new repository private"})
    dry_run: bool = field(
        default=False, metadata={"help": "check everything and list the files, without a connection"}
    )
    revision: str | None = field(default=None, metadata={"help": "tag of this version, such as v1"})
    base_model: str | None = field(
        default=None, metadata={"help": "Hub id of what the model was made from, where its card names a folder"}
    )
    space: bool = field(default=False, metadata={"help": "put the web page up too, as the Space REPO_ID-page"})


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments, publish, and print the address."""
    (arguments,) = parse_arguments(
        PublishArguments, argv=argv, description="Check a finished folder and put it on the Hub with its card."
    )

    url = publish(
        arguments.folder,
        arguments.repo_id,
        private=arguments.private,
        dry_run=arguments.dry_run,
        revision=arguments.revision,
        base_model=arguments.base_model,
        space=arguments.space,
    )
    if url is not None:
        print(url)
