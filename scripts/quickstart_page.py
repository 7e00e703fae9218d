"""The page at the end of the quickstart: what its commands wrote, in one file that needs no other.

python scripts/quickstart_page.py quickstart_output
"""

import sys
from pathlib import Path

import pandas as pd

from retfound_hf.evaluation.document import About, Block, Picture, Section, counts_text, render, report_sections
from retfound_hf.evaluation.predictions import Predictions
from retfound_hf.files import atomic_file, read_json

SHOWN = ("roc", "confusion_matrix")
FOOTER = "The full report, with every figure and table, is classifier/report.html beside this page."


def gallery(title: str, lead: str, folder: Path, says: str) -> Section:
    """Section of the pictures that `explain` wrote."""
    rows = pd.read_csv(folder / "maps.csv").to_dict("records")
    charts = [Picture((folder / row["picture"]).read_bytes(), says.format(**row), says.format(**row)) for row in rows]
    return Section(folder.name, title, lead, [Block(charts=charts)])


def page(out: Path) -> str:
    """HTML of the figures in `evaluation`, the maps in `maps` and the reconstructions in `reconstructions`."""
    folder = out / "evaluation"
    predictions, metrics = Predictions.read_csv(folder / "predictions.csv"), read_json(folder / "metrics.json")
    people = pd.read_csv(folder / "characteristics.csv", index_col=0)
    plots, counts = [folder / "plots" / f"{name}.png" for name in SHOWN], counts_text(predictions)
    found = report_sections(About("", {}, {}), predictions, metrics, {"characteristics": people}, plots, counts)
    sections = [section for section in found if section.name in ("performance", "plots")]
    lead = (
        "Bright areas counted most towards the class. The signs of retinopathy are bleeding and fatty deposits; what "
        "lights up elsewhere, such as a corner, shows how little so small a model knows."
    )
    sections.append(gallery("Where it looks", lead, out / "maps", "{id}: {class}, probability {probability:.2f}."))
    lead = "Three quarters of each image are hidden from the network, which paints them from the rest."
    sections.append(gallery("What it has learned of eyes", lead, out / "reconstructions", "{id}: error {loss:.2f}."))
    about = f"A linear head on the features of retfound-mini, on synthetic photographs that it has not seen: {counts}."
    return render("RETFound: the quickstart", about, sections, FOOTER)


if __name__ == "__main__":
    with atomic_file(Path(sys.argv[1]) / "index.html") as partial:
        partial.write_text(page(Path(sys.argv[1])), encoding="utf-8")
