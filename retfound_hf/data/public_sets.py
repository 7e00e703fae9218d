"""Public data sets of RETFound's benchmark: the official layout of each, and a check of a downloaded copy."""

import dataclasses
import difflib
import hashlib
import re
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal

from ..errors import BadDataError, UnreadableImageError, join_names, require
from ..files import refuse_existing, write_json
from ..images.reading import find_images, read_image
from ..options import parse_arguments
from ..record import write_run_record
from .splits import SPLITS
from .tables import normalise_split

FILE = Path(__file__).with_name("public_sets.yaml")
LIKENESS = 0.6  # of names that are taken for two spellings of one, by difflib's ratio
SHOWN = 50


@dataclass(frozen=True)
class Recipe:
    """Official layout of a public data set.

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


@dataclass
class Report:
    """State of a copy.

    Attributes:
        images: paths relative to the folder, by split and class folder; only those in the right place.
        problems: one line each; none if the copy is as the recipe says.
        notes: oddities that do no harm.
    """

    images: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@cache
def recipes() -> dict[str, Recipe]:
    """All recipes by name."""
    import yaml

    read = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return {name: Recipe(name, **fields) for name, fields in read.items()}


def recipe(name: str) -> Recipe:
    """The recipe of a data set, whatever the case of its name.

    Raises:
        BadArgumentError: an unknown name.
    """
    known = {_letters(each): found for each, found in recipes().items()}
    require("name", name if _letters(name) not in known else known[_letters(name)].name, recipes())
    return known[_letters(name)]


def check_copy(recipe: Recipe, folder: str | Path, read: bool = True, progress: bool = False) -> Report:
    """Compare a downloaded copy with its recipe.

    Args:
        recipe: of the data set.
        folder: holds `train`, `val` and `test`.
        read: decode every image and compare contents; without it only names are compared.
        progress: show a progress bar.

    Raises:
        BadDataError: the folder does not exist, or its splits lie in another one, which is named.
    """
    folder = Path(folder)
    if not folder.is_dir():
        message = f"folder {folder} does not exist; {recipe.name} is at {recipe.split} and {recipe.site}"
        raise BadDataError(message, source=folder)
    if not any(normalise_split(path.name) for path in _folders(folder)):
        deeper = [path.parent for path in sorted(folder.glob("*/*")) if path.is_dir() and path.name == "train"]
        if deeper:
            raise BadDataError(f"{folder} has no split folders, but {deeper[0]} has; give that one", source=folder)
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
        report.problems.append(f"folder {split} is missing{f': rename {alias[0]} to it' if alias else ''}")
        return
    found = [path.name for path in _folders(place)]
    absent = [name for name in recipe.classes if name not in found]
    surplus = [name for name in found if name not in recipe.classes]
    for name, like in _pair_alike(absent, surplus).items():
        report.problems.append(f"{split}/{name} is missing{f': {split}/{like} looks like it, rename it' * bool(like)}")
        if like:
            surplus.remove(like)
    report.problems += [f"{split}/{name} is no class of {recipe.name}; remove it" for name in surplus]
    if loose := [path.name for path in place.iterdir() if _is_visible_file(path)]:
        report.notes.append(f"{split} holds {len(loose)} file(s) outside its classes ({join_names(loose, 3)})")
    for name in recipe.classes:
        if name not in found:
            continue
        images = [path.relative_to(folder).as_posix() for path in find_images(place / name)]
        report.images[split, name] = images
        if not images:
            report.problems.append(f"{split}/{name} holds no image")
        files = sum(map(_is_visible_file, (place / name).rglob("*")))
        if files > len(images):
            report.notes.append(f"{split}/{name} holds {files - len(images)} file(s) that are no images")


def _pair_alike(absent: list[str], surplus: list[str]) -> dict[str, str | None]:
    """For each absent name the surplus one that is most like it, each used once; None where none is."""
    found: dict[str, str | None] = dict.fromkeys(absent)
    likeness = {
        (name, other): difflib.SequenceMatcher(None, _letters(name), _letters(other)).ratio()
        for name in absent
        for other in surplus
    }
    for (name, other), ratio in sorted(likeness.items(), key=lambda item: -item[1]):
        if ratio >= LIKENESS and found[name] is None and other not in found.values():
            found[name] = other
    return found


def _check_contents(folder: Path, report: Report, progress: bool) -> None:
    """Find unreadable images, and equal ones by their bytes."""
    from tqdm import tqdm

    paths = [path for images in report.images.values() for path in images]
    by_content: dict[bytes, list[str]] = defaultdict(list)
    with ThreadPoolExecutor() as pool:  # decoders release the interpreter's lock
        looks = pool.map(lambda path: _digest(folder / path), paths)
        bar = tqdm(looks, total=len(paths), desc="Reading", unit="image", disable=not progress)
        for path, (digest, reason) in zip(paths, bar, strict=True):
            if reason:
                report.problems.append(f"{path} cannot be read: {reason}")
            else:
                by_content[digest].append(path)
    for copies in by_content.values():
        splits, classes = (len({path.split("/")[level] for path in copies}) for level in (0, 1))
        equal = " = ".join(sorted(copies))
        if splits > 1 or classes > 1:
            report.problems.append(f"one image is in several {'splits' if splits > 1 else 'classes'}: {equal}")
        elif len(copies) > 1:
            report.notes.append(f"one image is there {len(copies)} times: {equal}")


def _digest(path: Path) -> tuple[bytes, str]:
    """Digest of a file's content, and the reason if it cannot be read."""
    try:
        content = path.read_bytes()
        read_image(content, min_side=64)
    except UnreadableImageError as error:
        return b"", error.reason
    except OSError as error:
        return b"", error.strerror or type(error).__name__
    return hashlib.blake2b(content).digest(), ""


def _letters(name: str) -> str:
    return re.sub(r"[\W_]", "", name.casefold())


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _is_visible_file(path: Path) -> bool:
    return path.is_file() and not path.name.startswith(".")


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
    """Command `check_dataset`: print the state of a copy.

    Raises:
        BadDataError: the copy has problems, so that the command's exit status tells.
    """
    description = "Check a downloaded copy of a public data set of RETFound's benchmark."
    (args,) = parse_arguments(CheckArguments, argv=argv, description=description)
    wanted = recipe(args.name)
    if args.output_dir is not None:
        refuse_existing(args.output_dir, args.overwrite_output_dir)
    report = check_copy(wanted, args.folder, args.read_images, progress=True)
    print(f"{wanted.name}: {wanted.task} ({wanted.modality.upper()}); licence: {wanted.licence}; {wanted.site}")
    width = max(map(len, wanted.classes))
    print(f"  {'':<{width}}  {'  '.join(f'{split:>6}' for split in SPLITS)}")
    counts = {split: {name: len(report.images.get((split, name), ())) for name in wanted.classes} for split in SPLITS}
    for name, meaning in wanted.classes.items():
        cells = [f"{counts[split][name]:>6,}" if (split, name) in report.images else f"{'-':>6}" for split in SPLITS]
        print(f"  {name:<{width}}  {'  '.join(cells)}  {meaning}")
    for line in [*report.problems[:SHOWN], *(f"note: {note}" for note in report.notes[:SHOWN])]:
        print(line)
    if len(report.problems) > SHOWN:
        print(f"... and {len(report.problems) - SHOWN} more")
    if args.output_dir is not None:
        found = {"problems": report.problems, "notes": report.notes}
        recorded = {"recipe": dataclasses.asdict(wanted), "images": counts, **found}
        write_json(Path(args.output_dir) / "report.json", recorded)
        write_run_record(args.output_dir, "check_dataset", args, problems=len(report.problems))
    if report.problems:
        message = f"{args.folder} is not {wanted.name} as published: {len(report.problems)} problem(s)"
        raise BadDataError(message, rows=report.problems, source=args.folder)
    print(f"{args.folder} is as it should be")
