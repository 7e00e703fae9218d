"""Vocabulary that every room shares: modalities and problem types, one row each.

Rows may be added at run time; what reads the tables takes them.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .errors import BadArgumentError, join_names

if TYPE_CHECKING:
    from torch import Tensor

SINGLE_LABEL = "single_label_classification"
MULTI_LABEL = "multi_label_classification"
REGRESSION = "regression"
POINTS_FILE = "operating_points.json"  # of a model folder: thresholds of its head


@dataclass(frozen=True)
class Modality:
    """Kind of retinal image.

    Attributes:
        name: value of `config.modality`.
        title: in running text, plural.
        mask_ratio: share of hidden patches in pretraining (Zhou et al. 2023, Methods).
        gray: the three colour channels are equal.
        crop: images are cropped to the field of view.
    """

    name: str
    title: str
    mask_ratio: float
    gray: bool
    crop: bool


MODALITIES = {
    "cfp": Modality("cfp", "colour fundus photographs", 0.75, gray=False, crop=True),
    "oct": Modality("oct", "OCT B-scans", 0.85, gray=True, crop=False),
}


@dataclass(frozen=True)
class ProblemType:
    """Kind of target, named as `config.problem_type` of transformers.

    Attributes:
        name: value of `config.problem_type`.
        title: in running text.
        label: what the labels of one image are.
        loss: mean loss of (logits, labels, weights, smoothing, scale), see `classification_loss`.
        to_scores: from logits (batch, C) to probabilities or numbers of the same shape.
    """

    name: str
    title: str
    label: str
    loss: "Callable[[Tensor, Tensor, Tensor | None, float, Tensor | None], Tensor]"
    to_scores: "Callable[[Tensor], Tensor]"

    @property
    def is_classification(self) -> bool:
        """Whether scores are probabilities of classes."""
        return self.name != REGRESSION


def _cross_entropy(logits: Any, labels: Any, weights: Any, smoothing: float, scale: Any) -> Any:
    from torch.nn import functional

    # Over the number of images, not the sum of their weights: a batch that lacks the rare class weighs less.
    total = functional.cross_entropy(logits, labels, weight=weights, label_smoothing=smoothing, reduction="sum")
    return total / len(logits)


def _binary_cross_entropy(logits: Any, labels: Any, weights: Any, smoothing: float, scale: Any) -> Any:
    from torch.nn import functional

    smoothed = labels.to(logits.dtype).view_as(logits) * (1 - smoothing) + smoothing / 2
    return functional.binary_cross_entropy_with_logits(logits, smoothed, pos_weight=weights)


def _squared_error(logits: Any, labels: Any, weights: Any, smoothing: float, scale: Any) -> Any:
    errors = logits - labels.to(logits.dtype).view_as(logits)
    return (errors if scale is None else errors / scale).square().mean()


PROBLEM_TYPES = {
    SINGLE_LABEL: ProblemType(
        SINGLE_LABEL, "one of several classes", "one class", _cross_entropy, lambda logits: logits.softmax(-1)
    ),
    MULTI_LABEL: ProblemType(
        MULTI_LABEL, "findings that may occur together", "0 or 1 for each finding", _binary_cross_entropy,
        lambda logits: logits.sigmoid(),
    ),
    REGRESSION: ProblemType(REGRESSION, "numbers", "one number per target", _squared_error, lambda logits: logits),
}  # fmt: skip


def problem_type_of(config: Any) -> str:
    """Key of `PROBLEM_TYPES` for a configuration of transformers, by the rule of its losses where it names none."""
    return config.problem_type or (REGRESSION if config.num_labels == 1 else SINGLE_LABEL)


# Words for eyes without a finding, in small letters without accents; words that may stand beside them, or say it at
# the end of a name (`DR negative`); words that deny a finding; and the lesser of two degrees.
HEALTH, BESIDES, AFTER, DENIALS, LESSER = (
    frozenset(words.split())
    for words in (
        """normal normals healthy health control controls ctrl ctrls ctl ctr cntrl unaffected well none absent negative
        neg nl wnl hc nc n gradable gradeable usable good adequate acceptable clear intact pass passed regular typical
        normotensive survived survivor survivors sano sana sanos sanas saludable
        saludables sain saine sains saines temoin temoins gesund gesunde gesunder kontrolle kontrollen normale
        normales normali normaux normaal normalny normalna gezond gezonde frisk friska saudavel saudaveis negativo
        negativa negativos negatif negatifs negativ ausente controle controles controllo controlli zdrowy zdrowe zdravy
        zdravi zdrave saglikli kontrol terve egeszseges норма норм нормальный нормальные здоров здоровый здоровые
        контроль سليم طبيعي""",
        "eye eyes retina retinas fundus macula patient patients class case cases image images",
        "negative neg absent absence free negativ negativo negatif ausente",
        """no not non without sin sans ohne kein keine senza sem geen zonder utan ingen uden nie bez false nein nao нет
        без не""",
        "low mild early benign stable alive censored",
    )
)
SHORT_DENIAL = re.compile(
    r"non\w*|no(dr|dme|amd|armd|rop|glaucoma|disease|finding|patholog|retinopathy|lesion|csme|o?edema)\w*"
)
EAST_ASIAN_HEALTH = re.compile(
    r"^(?!.*(不正常|非正常|비정상)).*(正常|健康|健常|阴性|陰性|정상|음성|건강)|.*(なし|없음)$|^(无|無|未|没|非)"
)
ROMANS = {"I": 1, "II": 2, "III": 3, "IV": 4, "V": 5, "VI": 6, "VII": 7, "VIII": 8, "IX": 9, "X": 10}
ROMAN = re.compile(rf"(?<![^\W_])(?:{'|'.join(ROMANS)})(?![^\W_])")
DENYING_PREFIXES = ("un", "non", "not", "no", "n", "in", "ir", "a")


def known_order(names: Sequence[str]) -> tuple[str, ...] | None:
    """Class names from the lowest to the highest where they tell it themselves, else None.

    Names order themselves by the one number in each (`0` to `4`, `stage 2`, `Grade III`), and two of them also by
    what they say: the lower denies a finding (`normal`, `GON-`, `no_dr`, `NDR` beside `DR`, `unreferable`, `sano`,
    `正常`).

    Args:
        names: of exclusive classes.
    """
    names = list(map(str, names))
    if len(names) == 2:
        denied = [_absence(name) for name in names]
        if denied[0] == denied[1]:
            bare = ["".join(_words(name)) for name in names]
            denied = [
                int(bool(other) and one in {prefix + other for prefix in DENYING_PREFIXES})
                for one, other in (bare, bare[::-1])
            ]
        if denied[0] != denied[1]:
            return tuple(names if denied[0] > denied[1] else names[::-1])
    # A Roman numeral without II beside it is a letter, which may mean anything.
    is_roman = any("II" in ROMAN.findall(name) for name in names)
    texts = {name: ROMAN.sub(lambda found: str(ROMANS[found[0]]), name) if is_roman else name for name in names}
    # The sign in `stage-2` is a hyphen.
    numbers = {n: re.findall(r"(?<![\d.])(?:(?<![^\W_])[+-])?\d+(?:\.\d+)?", text) for n, text in texts.items()}
    if any(len(found) != 1 for found in numbers.values()):
        return None
    values = {name: float(found[0]) for name, found in numbers.items()}
    # `6 weeks` and `drusen 3` have numbers too, but no common scale.
    stems = {re.sub(r"[\W\d_]+", "", text).casefold() for text in texts.values()}
    return (
        tuple(sorted(names, key=values.get)) if len(stems) == 1 and len(set(values.values())) == len(names) else None
    )


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Names sorted by value where all are numbers or each holds one ("stage 2" before "stage 10"), else naturally."""
    names = sorted(names)
    if all(re.fullmatch(r"[+-]?\d+(\.\d+)?", name) for name in names):
        return tuple(sorted(names, key=float))
    numbers = {name: [int(found) for found in re.findall(r"\d+", name)] for name in names}
    if all(len(found) == 1 for found in numbers.values()) and len(set(map(tuple, numbers.values()))) == len(names):
        return tuple(sorted(names, key=numbers.__getitem__))
    pieces = {name: re.split(r"(\d+)", name) for name in names}
    return tuple(sorted(names, key=lambda name: [int(part) if n % 2 else part for n, part in enumerate(pieces[name])]))


def order_classes(
    names: Sequence[str], problem_type: str, positive_class: str | None, stated: Sequence[str] | None = None
) -> tuple[str, ...] | None:
    """Exclusive classes from the lowest to the highest, of two the finding last; None where that is not known.

    Args:
        names: of the classes.
        problem_type: only exclusive classes have an order.
        positive_class: of two classes the finding, before all that names tell.
        stated: order that the data or the user state; what names of two classes say comes before it.

    Raises:
        BadArgumentError: a `positive_class` that is none of two classes.
    """
    single, names = problem_type == SINGLE_LABEL, tuple(names)
    if positive_class is not None:
        accepted = names if single and len(names) == 2 else ()
        if positive_class not in accepted:
            message = f"`positive_class={positive_class}` is none of two classes; the labels are {join_names(names)}"
            raise BadArgumentError(message, field="positive_class", value=positive_class, accepted=accepted)
        return (*(name for name in names if name != positive_class), positive_class)
    if not single:
        return None
    stated = tuple(stated) if stated else None
    return (known_order(names) or stated) if len(names) == 2 else (stated or known_order(names))


def _words(name: str) -> list[str]:
    """Words of a name in small letters without accents; `nonReferable_eyes` gives non, referable, eyes."""
    plain = "".join(sign for sign in unicodedata.normalize("NFKD", name) if not unicodedata.combining(sign))
    plain = unicodedata.normalize("NFKC", plain)
    parts = re.findall(r"[^\W\d_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", plain))
    return [part.casefold() for part in parts]


def _absence(name: str) -> int:
    """Degree to which a name says that there is no finding: 3 health, 2 a denial, 1 the lesser degree, 0 none."""
    words = _words(name)
    if len(words) > 1 and len(words[0]) == 1:  # a_normal, b_glaucoma: a letter for the order
        words = words[1:]
    if re.search(r"[\w)\s]\s*(-|−|–|\(\s*[-−–]\s*\))\s*$", name) or re.fullmatch(r"\s*(-|0+)\s*", name):
        return 3
    if not words:
        return 0
    health = set(words) & HEALTH and set(words) <= HEALTH | BESIDES  # not `normal tension glaucoma`
    if health or (len(words) > 1 and words[-1] in AFTER) or (EAST_ASIAN_HEALTH.match(name.strip())):
        return 3
    if words[0] in DENIALS or SHORT_DENIAL.fullmatch(words[0]):
        return 2
    return int(bool(set(words) & LESSER))
