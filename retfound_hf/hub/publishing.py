"""A finished folder to the Hub, in one commit."""

from pathlib import Path
from tempfile import TemporaryDirectory

from ..runs.errors import RetFoundError
from ..runs.hub_errors import explained
from .card_checks import check_card, read_card
from .contents import Contents, read_contents
from .licences import check_licence
from .staging import is_hub_id, staged
from .uploading import check_private, client, space_id, upload_model, upload_page


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
        with explained(repo_id, "published", token):
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
