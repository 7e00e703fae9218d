"""Words of the page in the language of the visitor's browser, from the table words.yaml.

A row of the table holds an English sentence and its translations; `{name}` stands for what is filled in. Names of
classes, the model's card and the reasons of errors stay as they are.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

LANGUAGES = ("en", "de", "es", "zh")


@cache
def translations(language: str) -> dict[str, str]:
    """Sentences of the table in `language`, by the English ones."""
    import yaml

    rows = yaml.safe_load(Path(__file__).with_name("words.yaml").read_text(encoding="utf-8"))
    return {row["en"]: row[language] for row in rows}


@dataclass(frozen=True)
class Words:
    """Translator into one of `LANGUAGES`: `words("Waiting for {before} earlier batches.", before=2)`."""

    language: str = "en"

    def __call__(self, sentence: str, **facts: object) -> str:
        """The sentence with the facts filled in; English where the table has no row for it."""
        found = sentence if self.language == "en" else translations(self.language).get(sentence, sentence)
        return found.format(**facts) if facts else found


ENGLISH = Words()


def words_for(headers: Mapping[str, str]) -> Words:
    """The first language of a request's `Accept-Language` that the page speaks; English without one.

    Browsers send the languages in the order of the visitor's choice.
    """
    for part in headers.get("accept-language", "").lower().split(","):
        language = part.partition(";")[0].strip().partition("-")[0]
        if language in LANGUAGES:
            return Words(language)
    return ENGLISH
