"""Known names of splits, patients and unknown values in folders and tables, and how they are recognised."""

import re
from collections.abc import Iterable

# Words of a split's name, as `datasets` knows them and more; digits, case and the words of FILLERS do not count.
SPLIT_WORDS = {
    "train": "train", "training": "train", "trn": "train", "tr": "train",
    "val": "val", "validation": "val", "validate": "val", "valid": "val", "dev": "val", "tune": "val", "tuning": "val",
    "test": "test", "testing": "test", "tst": "test", "holdout": "test", "heldout": "test",
    "eval": "test", "evaluation": "test", "evaluate": "test",
}  # fmt: skip
# The validation set beside a test set (RFMiD: Training_Set, Evaluation_Set, Test_Set), else the test set (`datasets`).
EVALUATION = ("eval", "evaluation", "evaluate")
FILLERS = ("set", "sets", "data", "dataset", "split", "subset", "part", "images", "image", "imgs", "img", "files")
FOLDS = re.compile(r"(cv|kfold|folds?|splits?|partitions?|parts?)[\W_]*\d+", re.I)

# Columns by their names without case, blanks, hyphens, dots and underscores. Those of the second line hold a split
# only where their values say so.
SPLIT_COLUMNS = ("split", "splits", "partition", "partitions", "fold", "folds", "usage", "cvfold", "kfold", "foldid")
SPLIT_COLUMN_ENDS = ("split", "partition")

PATIENT_COLUMNS = re.compile(
    r"(patient|subject|person|participant|pat)s?[ _.-]?(id|identifier|nr|no|num|number|code)?", re.I
)
# Names (as `bare` writes them) that may be an image's or a patient's: a patient's where values occur more than once.
REPEATED_PATIENT_COLUMNS = re.compile(
    r"(unique|global|study|record|case|person|individual|proband|examinee|client|member|anon\w*|pseudo\w*|deid\w*|"
    r"research|medicalrecord|chart|nhs|pt|subj?|patient(en)?|paciente?|subject|participant|pat)"
    r"(ids?|identifier|nr|no|num|number|nummer|code|key|index|name|hash|uid|guid)|hospital(nr|no|num|number)|"
    r"id(patient|subject|person|participant|case)|ids?|identifier|[ehpsu]id|mrn|hn|empi|urn|uhid|case|individual|"
    r"proband|examinee|client|pseudonym|paciente|pt|subj"
)
UNKNOWN_PATIENTS = (
    "", "-", "--", "---", ".", "?", "??", "_", "*", "/", "x", "xx", "xxx", "unknown", "unk", "unkn", "unnamed", "n/a",
    "na", "n.a.", "#n/a", "#ref!", "#name?", "#value!", "none", "null", "nil", "nan", "<na>", "missing", "undefined",
    "not available", "not known", "not applicable", "not recorded", "unspecified", "anonymous", "anonymized", "tbd",
    "anonymised", "anon", "no id", "noid", "unbekannt", "inconnu", "desconocido",
)  # fmt: skip
# A spreadsheet's writing of long numbers, whose last digits are lost.
LOST_DIGITS = re.compile(r"\d([.,]\d+)?e\+?\d+", re.I)
# Unknown where they occur on many more images than other values.
DUMMY_NUMBERS = re.compile(r"-?(0+|1|9{2,}|-\d+)(\.0+)?")

EYES = re.compile(r"(?<![a-z])(left|right|od|os|ou|re|le|l|r)(?![a-z])", re.I)


def bare(name: object) -> str:
    """A column's name without case, blanks, hyphens, dots and underscores."""
    return re.sub(r"[\s_.\-]+", "", str(name)).casefold()


def words_of(name: object) -> list[str]:
    """Words of letters, in lower case: `TrainingSet400` gives training, set."""
    return re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", str(name)).replace("old-out", "oldout").lower())


def _split_words(name: object) -> tuple[list[str], list[str]]:
    """Words of `name` that name a split, and the others but for fillers and single letters."""
    words = [re.sub(r"(?<=[a-z]{2})(data)?(sets?|data|images|split)$", "", word) or word for word in words_of(name)]
    found = [word for word in words if word in SPLIT_WORDS]
    return found, [word for word in words if word not in SPLIT_WORDS and word not in FILLERS and len(word) > 1]


def normalise_split(name: object) -> str | None:
    """One of "train", "val", "test" for any accepted spelling, such as `Training_Set` or `Test400`, else None."""
    found, others = _split_words(name)
    return SPLIT_WORDS[found[0]] if len(found) == 1 and not others else None


def splits_of(names: Iterable[object]) -> dict[object, str]:
    """The names among `names` that are splits, each with its split.

    Names with other words in them (`REFUGE-Training400`) count where all of `names` have one split's name, of two
    splits or more.
    """
    names = list(names)
    found = {name: split for name in names if (split := normalise_split(name))}
    if not found:
        loose = {name: SPLIT_WORDS[words[0]] for name in names if len(words := _split_words(name)[0]) == 1}
        found = loose if len(loose) == len(names) and len(set(loose.values())) > 1 else {}
    asked = [name for name in found if _split_words(name)[0][0] in EVALUATION]
    if "val" not in found.values() and any(found[name] == "test" for name in found if name not in asked):
        found.update(dict.fromkeys(asked, "val"))
    return found


def name_splits(names: Iterable[str]) -> bool:
    """Whether all of several names are those of splits or folds, and so of no classes."""
    names = list(names)
    splits = [normalise_split(name) or ("fold" if FOLDS.fullmatch(name.strip()) else None) for name in names]
    return len(names) > 1 and None not in splits
