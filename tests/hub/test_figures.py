"""What of a card is a figure, in whatever way it is written, and what is none."""

import pytest

from retfound_hf.hub.card_check import figures_of, read_figure


def stated(text, labels=(), **options) -> list[str]:
    return [figure.text for figure in figures_of(text, labels, **options)]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("AUROC .912", 0.912), ("`0.987`", 0.987), ("_0.987_", 0.987), ("**0.9**87", 0.987), ("AUROC-0.987", 0.987),
        ("0.987x", 0.987), ("9.87e-1", 0.987), ("1/0.987", 0.987), ("0,987", 0.987), ("0·987", 0.987),
        ("98,7%", 0.987), ("98.7 %", 0.987), ("98.7 percent", 0.987), ("９８.7％", 0.987), ("0&#46;987", 0.987),
        ("AUROC0.987", 0.987),
        ("`AUROC=0.987`", 0.987), ("[0.987](https://example.org)", 0.987), ("| AUROC | 91 |", 91), ("AUROC of 91", 91),
        ("an F1 score: 91", 91), ("-0.050", -0.05), ("MAE of 2.9 years", 2.9), ("95% of them", 0.95), ("0.95", 0.95),
        ("# AUROC-0.987: RETFound", 0.987), ("## Citation\n\nAUROC 0.987.", 0.987), ("improves by 0.987", 0.987),
        ("at any age it scores 0.987", 0.987), ("1,204.5 of them", 1204.5),
    ],
)  # fmt: skip
def test_figures_in_many_spellings(text, value):
    (figure,) = figures_of(text)
    assert figure.value == pytest.approx(value)


@pytest.mark.parametrize(
    "text",
    [
        "# my-model-1.5: RETFound", "see 1.0.2 and v1.5", "on 1.5.2023, in 05.2023, 2019-2021",
        "`base-0.5` and `--lr 0.1`",
        "```python\nauroc = 0.987\n```", "https://example.org/0.987/a", "doi:10.1038/s41586-023-06555-x",
        "arXiv:2305.12345", "Transformers 4.57 and 5.17, Python>=3.11 (PyTorch 2.6)", "versions such as 5.17",
        "GPT-3.5", "CC BY-NC 4.0",
        "### 2.1 Sites", "section 2.3, Table 1.2, § 4.1", "ViT-L/16 on 224 x 224 pixels", "1,204 patients, 3 years",
        "sensitivity at 3 years", "AUROC over 5 seeds", "recall 3 years later",
        "a 95% interval, 95% CI, 95% confidence",
        "mean age 63.5 (SD 10.2)", "for 2.5 hours on 8 x A100 80GB at 2.20GHz", "9.0 mm scans of 3.5 µm",
        "0.3B parameters", "Trained on a Xeon at 2.20 GHz",
        "peak learning rate 1.5e-05, weight decay 0.05", "## Citation\n\nEye 3.45 (2023).", "<!-- 0.987 -->",
    ],
)  # fmt: skip
def test_what_is_no_figure(text):
    assert stated(text) == []


def test_names_of_classes_and_groups_are_no_figures():
    text = "On stage 1.5 and `0.5`: AUROC 0.912\n\n| split | 0.5 | 1.0 | stage 1.5 |\n| 0.5 | 0.871 |\n"
    text += "| dose | 0.5 | 12 | 0.8 |"
    groups = [("dose", "0.5"), ("age", "50.5–<60.2")]
    text += "\n| age | 50.5–<60.2 | 11 |\n\nOne class for each image: 0.5, 1.0, stage 1.5."
    assert stated(text, ["0.5", "1.0", "stage 1.5"], groups=groups) == ["0.912", "0.871", "0.8"]


@pytest.mark.parametrize("labels", [["0", "1"], ["1", "2", "3"], ["0", "1", "2", "3", "4"], ["a", "I", "1.0"]])
def test_no_name_takes_digits_out_of_a_figure(labels):
    text = "## Evaluation\n\nOn 71 images, all of Ia: AUROC 0.193, 0.871, ece 1.012, stage 3\n\n"
    text += "| class | AUROC |\n| --- | ---: |\n"
    text += "".join(f"| {label} | 0.50{index} |\n" for index, label in enumerate(labels))
    figures = [f"0.50{index}" for index in range(len(labels))]
    assert stated(text, labels) == ["0.193", "0.871", "1.012", *figures]


def test_a_setting_is_a_figure_where_it_is_not_the_known_one():
    text = "mask ratio 0.75, weight decay 0.05, a temperature of 1.500"
    known = {"mask_ratio": {0.75}, "calibration_temperature": {1.4998}}
    assert stated(text, settings=known) == []
    assert stated(text, settings={"mask_ratio": {0.85}, "weight_decay": {0.1}}) == ["0.75", "0.05", "1.500"]


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("0.912", True), ("0.91", True), ("0.913", False), (".912", True), ("9.12e-1", True), ("91.2%", True),
        ("91%", True), ("92%", False), ("12.5%", True), ("1,200", True), ("1201", False), ("1", False),
        ("0.9125", True), ("-0.912", False), ("71", True), ("71.0", False),
    ],
)  # fmt: skip
def test_a_figure_is_known_as_it_is_rounded(text, known):
    assert read_figure(text).is_known({0.91249, 1200.0, 0.125}, {71.0}) is known
