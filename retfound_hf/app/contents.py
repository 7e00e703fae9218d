"""What a batch holds: the images of its zips and files, each with a name of its own."""

from collections.abc import Iterator, Sequence
from contextlib import closing

from .archives import Archive, ArchiveLimits, is_archive
from .kinds import HEAD, is_image_name, is_scan
from .limits import Limits
from .uploads import Upload

Contents = Iterator[tuple[str, bytes | OSError]]


def images_among(uploads: Sequence[Upload]) -> tuple[list[Upload], list[str]]:
    """What of a folder is an image, in order, and the names of the rest (notes, files of the system), removed."""
    images, passed_over = [], []
    for upload in sorted(uploads, key=lambda upload: upload.name):
        if is_image_name(upload.name) or _is_scan(upload):
            images.append(upload)
        else:
            passed_over.append(upload.name)
            upload.discard()
    return images, passed_over


def count(upload: Upload, limits: Limits) -> int:
    """Images in an upload; one that is gone counts as one that cannot be read.

    Raises:
        RetFoundError: a zip that is refused.
    """
    if not is_archive(upload.name):
        return 1
    try:
        with open(upload.path, "rb") as file, closing(Archive(file, _of_archives(limits))) as archive:
            return len(archive)
    except OSError:
        return 1


def contents(uploads: Sequence[Upload], limits: Limits, passed_over: list[str]) -> Contents:
    """Name of every image with its content, or the reason why there is none; an upload is removed once it is read.

    Args:
        passed_over: gains the names of what the zips hold beside images.
    """
    for upload in uploads:
        try:
            if is_archive(upload.name):
                with open(upload.path, "rb") as file, closing(Archive(file, _of_archives(limits))) as archive:
                    passed_over += archive.passed_over
                    yield from archive
            else:
                yield upload.name, upload.take()
        except OSError as error:
            yield upload.name, error
        finally:
            upload.discard()


def told_apart(contents: Contents, renamed: list[tuple[str, str]]) -> Contents:
    """The same with names that are unique, lest rows of the table share an id; browsers send files without folders."""
    given: set[str] = set()
    for name, content in contents:
        unique, number = name, 1
        while unique in given:
            number += 1
            unique = f"{name} ({number})"
        if unique != name:
            renamed.append((unique, f"an image before it is called {name} too; a zip keeps the folders"))
        given.add(unique)
        yield unique, content


def _is_scan(upload: Upload) -> bool:
    try:
        with open(upload.path, "rb") as file:
            return is_scan(upload.name, file.read(HEAD))
    except OSError:
        return False


def _of_archives(limits: Limits) -> ArchiveLimits:
    return ArchiveLimits(images=limits.images, bytes_each=limits.upload_bytes)
