"""The table of sentences: complete, alike in all languages, and chosen as browsers ask."""

import re
import string
from pathlib import Path

import pytest
import yaml

import retfound_hf.app
from retfound_hf.app.markup import AIMS, render
from retfound_hf.app.page import PROBLEMS, RECONSTRUCTED
from retfound_hf.app.words import ENGLISH, LANGUAGES, Words, words_for
from retfound_hf.images import quality
from retfound_hf.vocabulary import MODALITIES, PROBLEM_TYPES

APP = Path(retfound_hf.app.__file__).parent
TABLE = yaml.safe_load((APP / "words.yaml").read_text(encoding="utf-8"))
SENTENCES = [row["en"] for row in TABLE]


def fields(sentence: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(sentence) if name is not None}


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row["en"][:30])
def test_a_row_has_every_language_with_the_same_fields(row):
    assert tuple(row) == LANGUAGES and all(row.values())
    assert {language: fields(row[language]) for language in LANGUAGES} == dict.fromkeys(LANGUAGES, fields(row["en"]))


def test_every_sentence_of_the_page_has_one_row_and_no_row_is_without_use():
    templates = "".join(path.read_text(encoding="utf-8") for path in (APP / "templates").glob("*.html"))
    modules = "".join((APP / name).read_text(encoding="utf-8") for name in ("page.py", "markup.py"))
    called = re.findall(r'_\("([^"]+)"', templates) + re.findall(r'words\(\s*"([^"]+)"', modules)
    constants = [*AIMS.values(), *RECONSTRUCTED.values(), *(title for title, _ in PROBLEMS.values())]
    titles = [row.title for row in (*MODALITIES.values(), *PROBLEM_TYPES.values())]
    rules = [rule.reason for rule in (*quality.RULES, *quality.COLOUR_RULES, *quality.GRAY_RULES)]
    assert len(SENTENCES) == len(set(SENTENCES))
    assert {*called, *constants, *titles, *rules} <= set(SENTENCES)
    sources = templates + modules + Path(quality.__file__).read_text(encoding="utf-8")
    used = {*titles, *(sentence for sentence in SENTENCES if sentence in sources)}
    mismatches = {sentence for sentence in SENTENCES if " and the model is of " in sentence}
    assert set(SENTENCES) == used | mismatches


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_mismatch_of_modality_has_a_row(modality):
    other = next(row for name, row in MODALITIES.items() if name != modality)
    colour = 0.0 if other.gray else 100.0
    verdict, sentence = quality._modality_verdict(modality, colour, not MODALITIES[modality].crop)
    assert verdict != "ok" and (sentence in SENTENCES or "round field" in sentence)


@pytest.mark.parametrize(
    ("header", "language"),
    [("de-CH,de;q=0.9,en;q=0.8", "de"), ("zh-TW", "zh"), ("fr-FR,es;q=0.7", "es"), ("fr", "en"), ("", "en"),
     ("en-GB,de;q=0.9", "en"), ("*", "en"), (";;,,", "en")],
)  # fmt: skip
def test_the_language_is_the_first_that_the_page_speaks(header, language):
    assert words_for({"accept-language": header}) == Words(language)


def test_facts_are_filled_in_and_escaped_once():
    assert Words("de")("{count} images classified", count=3) == "3 Bilder ausgewertet"
    assert Words("de")("no such row {in} it") == "no such row {in} it"
    assert ENGLISH("{count} images classified", count=3) == "3 images classified"
    picture = render("picture", Words("de"), photo="x", heat="y", target="<b>", opacity=80, top=2.5)
    assert "<b>" not in picture and "<strong>&lt;b&gt;</strong>" in picture and "2.5 × Durchschnitt" in picture
