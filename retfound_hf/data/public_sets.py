"""Public data sets of RETFound's benchmark: what a downloaded copy must look like, and whether it does."""

import dataclasses
import difflib
import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal

from ..errors import RetFoundError, join_names, nearest
from ..files import refuse_existing, write_json
from ..images.reading import UnreadableImageError, find_images, read_image
from ..options import parse_arguments
from ..record import write_run_record
from .splits import SPLITS, normalise_split

FILE = Path(__file__).with_name("public_sets.yaml")


@dataclass(frozen=True)
class Recipe:
    """What is known of a public data set.

    Attributes:
        name: as in RETFound's benchmark.
        task: in words.
        modality: "cfp" or "oct".
        site: where its owners publish it.
        split: where RETFound's authors published their split of it.
        licence: "unknown" unless its text was seen.
        classes: meaning by name of the class folder, in the order of the grades.
    """

    name: str
    task: str
    modality: Literal["cfp", "oct"]
    site: str
    split: str
    licence: str
    classes: dict[str, str]


@cache
def recipes() -> dict[str, Recipe]:
    """All recipes by name."""
    import yaml

    read = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return {name: Recipe(name, **fields) for name, fields in read.items()}


def recipe(name: str) -> Recipe:
    """The recipe of a data set, whatever the case of its name.

    Raises:
        RetFoundError: an unknown name.
    """
    known = {_plain(each): found for each, found in recipes().items()}
    if _plain(name) not in known:
        raise RetFoundError(
            f"data set {name!r} is unknown{nearest(_plain(name), known)}; accepted: {', '.join(recipes())}"
        )
    return known[_plain(name)]


def _plain(name: str) -> str:
    return name.casefold().replace("-", "").replace("_", "").replace(" ", "")


@dataclass
class Report:
    """The state of a copy.

    Attributes:
        images: paths relative to the folder, by split and class folder; only what is where it should be.
        problems: one line each; none if the copy is as the recipe says.
        notes: what is odd but does no harm.
    """

    images: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def check_copy(recipe: Recipe, folder: str | Path, read: bool = True, progress: bool = False) -> Report:
    """Compare a downloaded copy with its recipe.

    Args:
        folder: holds `train`, `val` and `test`.
        read: decode every image and compare contents; without it only names are looked at.
        progress: show a bar on the way.

    Raises:
        RetFoundError: the folder does not exist, or its splits lie in another one, which is named.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise RetFoundError(f"folder {folder} does not exist; {recipe.name} is at {recipe.split} and {recipe.site}")
    if not any(normalise_split(path.name) for path in _folders(folder)):
        deeper = [path.parent for path in sorted(folder.glob("*/*")) if path.is_dir() and path.name == "train"]
        if deeper:
            raise RetFoundError(f"{folder} has no split folders, but {deeper[0]} has; give that one")
    report = Report()
    for split in SPLITS:
        _check_split(recipe, folder, split, report)
    if read:
        _check_contents(folder, report, progress)
    return report


def _check_split(recipe: Recipe, folder: Path, split: str, report: Report) -> None:
    place = folder / split
    if not place.is_dir():
        alias = [path.name for path in _folders(folder) if normalise_split(path.name) == split]
        like = f": rename {alias[0]} to it" if alias else ""
        report.problems.append(f"folder {split} is missing{like}")
        return
    found = [path.name for path in _folders(place)]
    absent = [name for name in recipe.classes if name not in found]
    surplus = [name for name in found if name not in recipe.classes]
    for name, like in _alike(absent, surplus).items():
        report.problems.append(f"{split}/{name} is missing{f': {split}/{like} looks like it, rename it' * bool(like)}")
        if like:
            surplus.remove(like)
    report.problems += [f"{split}/{name} is no class of {recipe.name}; remove it" for name in surplus]
    loose = [path.name for path in place.iterdir() if path.is_file() and not path.name.startswith(".")]
    if loose:
        report.notes.append(f"{split} holds {len(loose)} file(s) outside its classes ({join_names(loose, 3)})")
    for name in recipe.classes:
        if name in found:
            images = [path.relative_to(folder).as_posix() for path in find_images(place / name)]
            report.images[split, name] = images
            if not images:
                report.problems.append(f"{split}/{name} holds no image")
            files = sum(path.is_file() and not path.name.startswith(".") for path in (place / name).rglob("*"))
            if files > len(images):
                report.notes.append(f"{split}/{name} holds {files - len(images)} file(s) that are no images")


def _alike(absent: list[str], surplus: list[str]) -> dict[str, str | None]:
    """For each absent name the surplus one that is most like it, each used once; None where none is."""
    found: dict[str, str | None] = dict.fromkeys(absent)
    likeness = {
        (name, other): difflib.SequenceMatcher(None, _letters(name), _letters(other)).ratio()
        for name in absent
        for other in surplus
    }
    for (name, other), ratio in sorted(likeness.items(), key=lambda item: -item[1]):
        if ratio >= 0.6 and found[name] is None and other not in found.values():
            found[name] = other
    return found


def _letters(name: str) -> str:
    return re.sub(r"[\W_]", "", name.casefold())


def _check_contents(folder: Path, report: Report, progress: bool) -> None:
    from tqdm import tqdm

    paths = [path for images in report.images.values() for path in images]
    by_content: dict[bytes, list[str]] = defaultdict(list)
    with ThreadPoolExecutor() as pool:  # decoders let go of the interpreter
        looks = pool.map(lambda path: _look(folder / path), paths)
        for path, (digest, reason) in zip(
            paths, tqdm(looks, total=len(paths), desc="Reading", unit="image", disable=not progress), strict=True
        ):
            if reason:
                report.problems.append(f"{path} cannot be read: {reason}")
            else:
                by_content[digest].append(path)
    for copies in by_content.values():
        parts = [path.split("/")[:2] for path in copies]
        if len({split for split, _ in parts}) > 1:
            report.problems.append(f"one image is in several splits: {_equal(copies)}")
        elif len({name for _, name in parts}) > 1:
            report.problems.append(f"one image is in several classes: {_equal(copies)}")
        elif len(copies) > 1:
            report.notes.append(f"one image is there {len(copies)} times: {_equal(copies)}")


def _look(path: Path) -> tuple[bytes, str]:
    """Digest of a file's content, and why it cannot be read, if so."""
    try:
        content = path.read_bytes()
        read_image(content, min_side=64)
    except UnreadableImageError as error:
        return b"", error.reason
    except OSError as error:
        return b"", error.strerror or type(error).__name__
    return hashlib.blake2b(content).digest(), ""


def _equal(paths: Iterable[str]) -> str:
    return " = ".join(sorted(paths))


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


SHOWN = 50


@dataclass
class CheckArguments:
    name: str = field(
        metadata={
            "positional": True,
            "help": "APTOS2019, MESSIDOR2, IDRiD, PAPILA, Glaucoma_fundus, JSIEC, Retina or OCTID",
        }
    )
    folder: str = field(metadata={"positional": True, "help": "folder that holds train, val and test"})
    read_images: bool = field(
        default=True, metadata={"help": "whether to decode every image and to look for images that are there twice"}
    )
    output_dir: str | None = field(
        default=None, metadata={"help": "folder for report.json and run.json; none by default"}
    )
    overwrite_output_dir: bool = field(default=False, metadata={"help": "replace the output folder's report"})


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments, check the copy, and say what is wrong with it.

    Raises:
        RetFoundError: anything is, so that the command's exit status tells.
    """
    (arguments,) = parse_arguments(
        CheckArguments, argv=argv, description="Check a downloaded copy of a public data set of RETFound's benchmark."
    )

    wanted = recipe(arguments.name)
    if arguments.output_dir is not None:
        refuse_existing(arguments.output_dir, arguments.overwrite_output_dir)
    report = check_copy(wanted, arguments.folder, arguments.read_images, progress=True)
    print(f"{wanted.name}: {wanted.task} ({wanted.modality.upper()}); licence: {wanted.licence}; {wanted.site}")
    print(_counts(wanted, report.images))
    for line in [*report.problems[:SHOWN], *(f"note: {note}" for note in report.notes[:SHOWN])]:
        print(line)
    if len(report.problems) > SHOWN:
        print(f"... and {len(report.problems) - SHOWN} more")
    if arguments.output_dir is not None:
        counts = {
            split: {name: len(report.images.get((split, name), [])) for name in wanted.classes} for split in SPLITS
        }
        found = {
            "recipe": dataclasses.asdict(wanted),
            "images": counts,
            "problems": report.problems,
            "notes": report.notes,
        }
        write_json(Path(arguments.output_dir) / "report.json", found)
        write_run_record(arguments.output_dir, "check_dataset", arguments, problems=len(report.problems))
    if report.problems:
        raise RetFoundError(f"{arguments.folder} is not {wanted.name} as published: {len(report.problems)} problem(s)")
    print(f"{arguments.folder} is as it should be")


def _counts(wanted: Recipe, images: dict[tuple[str, str], list[str]]) -> str:
    """A table of images by class and split, with the meaning of each class."""
    width = max(map(len, wanted.classes))
    lines = [f"  {'':<{width}}  {'  '.join(f'{split:>6}' for split in SPLITS)}"]
    for name, meaning in wanted.classes.items():
        cells = [f"{len(images[split, name]):>6,}" if (split, name) in images else f"{'-':>6}" for split in SPLITS]
        lines.append(f"  {name:<{width}}  {'  '.join(cells)}  {meaning}")
    return "\n".join(lines)
