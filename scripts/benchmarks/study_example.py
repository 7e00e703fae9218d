"""Example study of the guide: the top of its report as a picture, and what it took and found.

    python scripts/benchmarks/study_example.py my-study --out scripts/benchmarks/results/study_example

Reads the folder that the README's commands made, and writes `.png` and `.json`. Needs chromium and the extra `test`.
Processor seconds are those of the jobs; wall seconds are those of the last call of the study.
"""

import argparse
import json
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from retfound_hf.files import write_json
from retfound_hf.record import git_revision, hardware, versions
from retfound_hf.study.results import StudyResults, read_study

SIZE = {"width": 1000, "height": 860}


def photograph(report: Path, path: Path) -> None:
    """The first screen of a report."""
    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page(viewport=SIZE)
        page.goto(report.resolve().as_uri())
        page.screenshot(path=path)
        browser.close()
    Image.open(path).convert("RGB").quantize(128).save(path, optimize=True)


def findings(found: StudyResults) -> list[dict]:
    """The reference against its best competitor on every evaluated set, with all labels."""
    rows = found.comparisons.query("metric == 'auroc' and fraction == 1.0 and set != 'val' and best")
    columns = ["data", "set", "model", "other", "difference", "low", "high", "p_value", "p_holm"]
    return rows[columns].to_dict("records")


def main() -> None:
    parser = argparse.ArgumentParser(description="Picture and figures of the README's study.")
    parser.add_argument("study", type=Path, help="folder of the study")
    parser.add_argument("--out", required=True, help="of the files, without .json and .png")
    parser.add_argument("--load", type=float, help="average load of the machine meanwhile, as `uptime` says it")
    arguments = parser.parse_args()
    found = read_study(arguments.study)
    record = {
        "jobs": len(found.finished),
        "processor_seconds": round(sum(job.facts["cpu_seconds"] for job in found.finished), 1),
        "wall_seconds": json.loads((arguments.study / "run.json").read_text(encoding="utf-8"))["seconds"],
        "load": arguments.load,
        "findings": findings(found),
        "hardware": hardware(),
        "versions": versions(),
        "git_revision": git_revision(),
    }
    write_json(f"{arguments.out}.json", record)
    photograph(arguments.study / "report.html", Path(f"{arguments.out}.png"))


if __name__ == "__main__":
    main()
