"""The words around a number that tell whether it speaks of performance, or of a version, an age, a setting."""

import re

METRIC = re.compile(
    r"(?<![A-Za-z])(?:AU-?(?:RO)?C|AU-?PRC?|ROC(?:[- ]AUC)?|accurac(?:y|ie)|sensitivit(?:y|ie)|specificit(?:y|ie)|"
    r"precision|recall|F1|PPV|NPV|Brier|ECE|calibration error|kappa|MCC|Dice|Jaccard|IoU|MAE|RMSE|MSE|absolute error|"
    r"squared error|R2|correlation|C-index|concordance|hazard ratio|odds ratio|log loss|likelihood ratio)s?(?![a-z])",
    re.I,
)
CLAIM = re.compile(
    r"\b(?:reach|achiev|attain|scor|perform|outperform|discriminat|predict|detect|classif|identif|error)", re.I
)
# A whole number right behind a metric is its value: "AUROC of 91", not "AUROC over 5 seeds" or "recall 3 years later".
BEFORE_VALUE = re.compile(
    rf"{METRIC.pattern}(?:[- ]?score)?"
    r"(?:[\s:=|(~≈<>≥≤.-]|\b(?:of|is|was|are|were|reached|reaches|above|about|around)\b)*$",
    re.I,
)
COUNTED = re.compile(
    r"[ -]?(?:years?|months?|weeks?|days?|images?|eyes?|patients?|photographs?|scans?|seeds?|folds?|runs?|classes|"
    r"resamples?|bits?|epochs?|steps?|grades?|graders?|sites?|centres?|centers?|hospitals?)\b"
)
INTERVAL = re.compile(r"\b95 ?%[- ](?:[a-z]+ )?(?:intervals?|CIs?|confidence)\b|\b95%CI\b", re.I)

_SOFTWARE = (
    r"transformers|retfound[_-]hf|py ?torch|torch|torchvision|timm|peft|python|cuda|cudnn|rocm|triton|numpy|scipy|"
    r"pandas|scikit-learn|sklearn|opencv|pillow|datasets(?=\s+[1-9])|accelerate|safetensors|huggingface[_-]hub|onnx(?:runtime)?|tensorflow|"
    r"keras|jax|ubuntu|debian|linux|macos|versions?|releases?|apache|gpl|lgpl|agpl|mit|cc0|licen[cs]e|"
    r"CC[- ]BY(?:-(?:NC|SA|ND))*|BY(?:-(?:NC|SA|ND))+"
)
_VERSION = r"(?:[<>=~!^]=?\s*)?v?\d+(?:\.\d+)*"
VERSION = re.compile(
    rf"(?<!\w)(?:{_SOFTWARE})(?:-|\s*\(?\s*(?:such as )?){_VERSION}"
    r"(?:(?:,| and| or| to|,? ?-|–|/)\s*(?:[<>=~!^]=?\s*)?[1-9]\d*(?:\.\d+)+(?![\d.]*\s?%|\d))*"
    r"|\bv\d+(?:\.\d+)+(?!\d)",
    re.I,
)
PLACE = re.compile(
    r"(?:^#+\s*|§+ ?|\b(?:sections?|tables?|figures?|figs?\.?|chapters?|appendix|appendices|equations?|eqs?\.?|no\.|"
    r"steps?)\s*)[1-9]\d*(?:\.\d+)+(?![\w%])",
    re.I,
)
MONTH = re.compile(r"(?<![\d.])(?:0?[1-9]|1[0-2])\.(?:19|20)\d\d(?!\d)")
NAME = re.compile(r"(?<!\w)[A-Za-z]\w*-[1-9]\d*\.\d+(?!\d|\s?%)")  # such as GPT-3.5

_RANGE = r"\d+(?:\.\d+)?(?:\s*(?:to|±|\+/-|-|–)\s*\d+(?:\.\d+)?)*"
# Performance is measured in none of these, ...
MACHINE = re.compile(
    rf"(?<![\w.]){_RANGE}[ -]?(?:(?:[A-Z]PU[ -])?hours?|h|min(?:utes)?|minute|seconds?|s|ms|[kKMGT]i?B|[kMG]Hz|k?Wh?|"
    r"kg|g|tonnes?|million|billion|[MB](?= param| weight)|[GT]FLOPs?|USD|EUR)(?!\w)"
)
# ... and in these only where a sentence speaks of performance, such as the error of a predicted age.
BODY = re.compile(
    rf"(?<![\w.]){_RANGE}[ -]?(?:years?|yrs?|months?|weeks?|days?|[mcµμn]m|um|microns?|degrees?|°|diopt(?:re|er)s?|D|"
    r"mmHg|letters|pixels?|px|mm2|mmol/L|mg/dL)(?!\w)"
)
PERSON = re.compile(r"\b(?:ages?|aged|sex)\b", re.I)
CHOSEN = re.compile(r"\b(?:target|threshold|operating point)", re.I)
# Names of settings, with the key of `config.json` or `run.json` that holds the value where one does.
SETTINGS: dict[str, str | None] = {
    "mask ratio": "mask_ratio", "temperature": "calibration_temperature", "weight decay": "weight_decay",
    "learning rate": None, "dropout": None, "drop path": None, "layer decay": None, "label smoothing": None,
    "momentum": None, "clip limit": None, "gamma": None,
}  # fmt: skip
SETTING = re.compile(
    rf"\b(?P<name>{'|'.join(SETTINGS)})(?: rate)?(?: of| is| was|:| =)? "
    r"(?P<value>\d[\d.,]*\d(?:e[-+]?\d+)?|\d+e[-+]?\d+)(?![\d%])",
    re.I,
)
