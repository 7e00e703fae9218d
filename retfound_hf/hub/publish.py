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

from ..errors import BadArgumentError, BadModelError, join_names
from ..files import output_faults, write_json
from ..hub_access import translate_hub_errors
from ..models.adapters import adapter_base
from ..models.loading import load_processor
from ..options import parse_arguments
from .contents import (
    SUBGROUPS,
    Contents,
    check_card,
    check_licence,
    hide_small_groups,
    may_be_published,
    read_card,
    read_contents,
    read_json,
)
from .remote_code import auto_maps, code_files

# Calls of a snippet that load a folder by its name, which may have changed since; ids of the Hub have a slash.
LOADED = re.compile(
    r"""(\bfrom_pretrained\((?:\w+, *)?|\bload_\w+\(|\bmodel=)("([^"/\\\n]|\\.)+"|'([^'/\\\n]|\\.)+')"""
)


@dataclass(frozen=True)
class Publication:
    """Result of `publish`; as text, the list of its files.

    Attributes:
        repo_id: repository.
        url: address of the version; None for a dry run.
        page_url: address of the web page, where it was asked for.
        files: size in bytes of every file that is sent.
        left_out: reason for every file of the folder that is not.
    """

    repo_id: str
    url: str | None
    page_url: str | None
    files: dict[str, int]
    left_out: dict[str, str]

    def __str__(self) -> str:
        sizes = self.files | {f"{len(self.files)} files": sum(self.files.values())}
        width = max(map(len, sizes))
        lines = [f"  {name.ljust(width)}  {size_text(size):>9}" for name, size in sizes.items()]
        for reason in dict.fromkeys(self.left_out.values()):
            lines.append(
                f"  left out ({reason}): {join_names(name for name in self.left_out if self.left_out[name] == reason)}"
            )
        return "\n".join(lines)


def size_text(size: int) -> str:
    """Bytes in decimal units, as the Hub shows them."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.2f} {unit}"
    return f"{size} B"


@contextmanager
def staged(contents: Contents, repo_id: str, base_model: str | None = None) -> Iterator[Path]:
    """Yield a temporary folder with all that is published under `repo_id`.

    Args:
        contents: the folder.
        repo_id: `ORG/NAME`.
        base_model: Hub id of what it was made from, for the card; for an adapter, the model that it is loaded onto.

    Raises:
        BadModelError: an adapter whose base nobody else can load.
    """
    with output_faults(contents.folder), tempfile.TemporaryDirectory(prefix=".publish-", dir=contents.folder) as name:
        stage = Path(name)
        for path in contents.files:
            (stage / path).parent.mkdir(parents=True, exist_ok=True)
            _link_or_copy(contents.folder / path, stage / path)
            if Path(path).name == SUBGROUPS:
                hide_small_groups(stage / path)
        if contents.card is not None:
            (stage / "README.md").write_text(contents.card, encoding="utf-8")
        if contents.kind == "adapter" and not (stage / "config.json").exists():
            write_json(stage / "config.json", contents.config)
        if contents.kind == "adapter" and not (stage / "preprocessor_config.json").exists():
            load_processor(str(contents.folder)).save_pretrained(stage)
        for config in stage.glob("*config.json"):
            write_json(config, _without_paths(read_json(config)))
        _add_code(stage)
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


def _add_code(stage: Path) -> None:
    """Write the code files of classes that are not those of transformers, and name them in the configurations."""
    config, processor = (read_json(stage / name) for name in ("config.json", "preprocessor_config.json"))
    maps = auto_maps(config, processor)
    for auto_map in maps.values():
        is_processor = "AutoImageProcessor" in auto_map
        name, content = ("preprocessor_config.json", processor) if is_processor else ("config.json", config)
        write_json(stage / name, content | {"auto_map": auto_map})
    for name, text in code_files(reference for auto_map in maps.values() for reference in auto_map.values()).items():
        (stage / name).write_text(text, encoding="utf-8")


def _name_base(stage: Path, base_model: str | None) -> None:
    config = read_json(stage / "adapter_config.json")
    base = base_model or config.get("base_model_name_or_path")
    if not base or not is_hub_id(base):
        raise BadModelError(
            f"the adapter was made on {base or 'an unknown model'}, which is not a Hub id: nobody else could load it; "
            "publish that folder first, then this one with `base_model=ORG/NAME`",
            model=base,
        )
    write_json(stage / "adapter_config.json", config | {"base_model_name_or_path": base})


def _check_base(contents: Contents) -> None:
    """Raise for an adapter that Auto classes would load from the Hub into another class, that of its base."""
    from huggingface_hub import try_to_load_from_cache

    base = adapter_base(contents.folder)
    file = Path(base) / "config.json"
    if not file.is_file() and is_hub_id(base):
        cached = try_to_load_from_cache(base, "config.json")
        file = Path(cached) if isinstance(cached, str) else file
    if file.is_file() and read_json(file).get("model_type") != contents.config["model_type"]:
        raise BadModelError(
            f"the adapter was made on {base}, a model of another class: from the Hub, transformers would load it into "
            "that class and give other scores; publish the merged model instead (`merge` in fine-tuning)",
            model=base,
        )


def _rewrite_card(contents: Contents, stage: Path, repo_id: str, base_model: str | None) -> None:
    """Let the snippets load by name, and the metadata name bases that exist on the Hub."""
    from huggingface_hub import ModelCard

    path = stage / "README.md"
    text = LOADED.sub(rf'\1"{repo_id}"', path.read_text(encoding="utf-8"))
    card = ModelCard(text, ignore_metadata_errors=True)
    named = base_model or card.data.to_dict().get("base_model") or []
    bases = [base for base in ([named] if isinstance(named, str) else named) if is_hub_id(base)]
    if contents.kind == "adapter":
        bases = [read_json(stage / "adapter_config.json")["base_model_name_or_path"]]
    if bases:
        card.data.base_model = bases[0] if len(bases) == 1 else bases
        if contents.kind == "adapter" or base_model:
            card.data.base_model_relation = "adapter" if contents.kind == "adapter" else "finetune"
    elif "base_model" in card.data.to_dict():
        del card.data.base_model
    path.write_text(str(card), encoding="utf-8")


def is_hub_id(name: str) -> bool:
    """Whether a name can be a repository of the Hub, and is not a folder here."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None and not Path(name).exists()


def publish(
    folder: str | Path,
    repo_id: str,
    private: bool = False,
    dry_run: bool = False,
    revision: str | None = None,
    base_model: str | None = None,
    space: bool = False,
    token: str | None = None,
) -> Publication:
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

    Raises:
        BadModelError: a folder or a card that is not fit to be published.
        BadArgumentError: an option that does not fit the folder or the repository.
        HubAccessError: the Hub cannot be reached, or refuses.
    """
    if not is_hub_id(repo_id):
        message = f"`repo_id={repo_id}` is not the name of a repository; accepted: ORG/NAME"
        raise BadArgumentError(message, field="repo_id", value=repo_id)
    contents = read_contents(folder)
    if space and not contents.is_classifier:
        raise BadArgumentError(f"`space` needs a classifier, which {folder} is not", field="space", value=space)
    metadata, text = read_card(contents.folder, contents.card)
    licence = check_licence(contents, metadata, base_model)
    check_card(contents, metadata, text)
    if contents.kind == "adapter":
        _check_base(contents)
    with staged(contents, repo_id, base_model) as stage, TemporaryDirectory() as page:
        read_card(stage)
        if space:
            from ..app.space import write_space

            write_space(page, repo_id, license=licence)
        url = page_url = None
        if not dry_run:
            from huggingface_hub import HfApi

            api = HfApi(token=token, library_name="retfound_hf")
            with translate_hub_errors(repo_id, "published", token):
                private = _check_private(api, repo_id, private, space)
                url = _upload_model(api, stage, repo_id, private, revision)
            page_url = _upload_page(api, Path(page), repo_id, private) if space else None
        paths = sorted(path for path in stage.rglob("*") if path.is_file())
        files = {path.relative_to(stage).as_posix(): path.stat().st_size for path in paths}
    return Publication(repo_id, url, page_url, files, contents.left_out)


def space_id(repo_id: str) -> str:
    """The Space of a model's web page."""
    return f"{repo_id}-page"


def _check_private(api: Any, repo_id: str, private: bool, space: bool) -> bool:
    """Whether the model, and its page, have to be private: where that is asked for, or where the model is already.

    Raises:
        BadArgumentError: a public repository or Space in which they would lie open to all.
    """
    now = _is_private(api, repo_id, "model")
    if private and now is False:
        message = f"{repo_id} exists and is public, and `private` was given; nothing was sent"
        raise BadArgumentError(message, field="private", value=private)
    private = private or now is True
    if private and space and _is_private(api, space_id(repo_id), "space") is False:
        raise BadArgumentError(
            f"the Space {space_id(repo_id)} exists and is public, and {repo_id} is private; nothing was sent: make "
            "the Space private or remove it, or leave `space` out",
            field="space", value=space,
        )  # fmt: skip
    return private


def _is_private(api: Any, repo_id: str, kind: str) -> bool | None:
    """None for a repository that does not exist."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        return api.repo_info(repo_id, repo_type=kind).private
    except RepositoryNotFoundError:
        return None


def _upload_model(api: Any, stage: Path, repo_id: str, private: bool, revision: str | None) -> str:
    """Send a staged folder, with a tag if `revision` names one, and return the address of the version."""
    url = api.create_repo(repo_id, private=private or None, exist_ok=True)
    if revision is not None and revision in {tag.name for tag in api.list_repo_refs(repo_id).tags}:
        message = f"{repo_id} has a version {revision} already, which stays as it is; choose another `revision`"
        raise BadArgumentError(message, field="revision", value=revision)
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


def _upload_page(api: Any, page: Path, repo_id: str, private: bool) -> str:
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


class HubPublisher:
    """Publishes the folder of a run; the repository is the user's own unless an organisation is named."""

    def check(self, token: str | None = None) -> None:
        """Raise HubAccessError without a connection or without a valid token: `token`, or the login's."""
        _user(token)

    def push(
        self, folder: str, repo_id: str | None, private: bool | None = None, token: str | None = None
    ) -> str | None:
        """Publish `folder` as `repo_id`, by default under the folder's name, and return the address."""
        repo_id = repo_id or Path(folder).resolve().name
        repo_id = repo_id if "/" in repo_id else f"{_user(token)}/{repo_id}"
        return publish(folder, repo_id, private=bool(private), token=token).url


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
    """Run the command `publish`: print the files and the addresses."""
    (arguments,) = parse_arguments(
        PublishArguments, argv=argv, description="Check a finished folder and put it on the Hub with its card."
    )
    published = publish(**vars(arguments))
    print(published)
    if published.url is None:
        also = f", and its page to the Space {space_id(published.repo_id)}" if arguments.space else ""
        print(f"\nDry run: nothing was sent. Without --dry_run this goes to {published.repo_id}{also}.")
    for url in (published.page_url, published.url):
        if url is not None:
            print(url)
