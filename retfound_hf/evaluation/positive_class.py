"""Which of two exclusive classes is the finding, and which its absence."""

import re
from collections.abc import Sequence

WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
HEALTH = frozenset(("normal", "healthy", "health", "control", "controls", "negative", "absent", "unaffected"))
BESIDES = frozenset(("eye", "eyes", "retina", "fundus", "macula", "patient", "patients", "class"))
DENIALS = ("no", "not", "without")


def positive_class(class_names: Sequence[str]) -> int:
    """Index of the class that curves and thresholds speak of: 1, or 0 where 1 and not 0 is named for health.

    Folders of classes sort by name, so that `glaucoma` comes before `normal`.

    Args:
        class_names: of two exclusive classes.
    """
    first, second = map(_is_absence, class_names)
    return 0 if second and not first else 1


def _is_absence(name: str) -> bool:
    """`Normal`, `healthy eyes`, `no_dr`, `NonReferable`; not `normal tension glaucoma`."""
    words = [word.casefold() for word in WORD.findall(name)]
    if len(words) > 1 and len(words[0]) == 1:  # a_normal, b_glaucoma: a letter for the order
        words = words[1:]
    if not words:
        return False
    return words[0] in DENIALS or words[0].startswith("non") or (words[0] in HEALTH and set(words[1:]) <= BESIDES)
