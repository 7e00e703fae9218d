"""The pictures of the web page in the README, made anew.

    python scripts/benchmarks/app_pictures.py --out scripts/benchmarks/results

As a reader would: a synthetic set, a classifier on it, the page, and a browser that takes one of the page's synthetic
examples. Needs chromium and the extra `test`.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

SCRIPTS = Path(__file__).parents[1]
PORT = 7898
VIEWS = {"app-desktop": (1200, 900, 1), "app-phone": (390, 844, 1)}
COLOURS = 200  # of the stored pictures


def run(*words: str) -> None:
    subprocess.run([sys.executable, *words], check=True)


def make_classifier(folder: Path) -> Path:
    data, model = folder / "data", folder / "my-classifier"
    run(str(SCRIPTS / "make_synthetic.py"), str(data), "--modality", "cfp", "--num_patients", "150")
    words = ["--config_name", "retfound-tiny", "--method", "linear", "--data", str(data), "--output_dir", str(model)]
    run(str(SCRIPTS / "finetune.py"), *words, "--cache_dir", str(folder / "cache"))
    return model


def photograph_page(out: Path) -> None:
    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        for name, (width, height, scale) in VIEWS.items():
            viewport = {"width": width, "height": height}
            page = browser.new_context(viewport=viewport, device_scale_factor=scale).new_page()
            page.goto(f"http://127.0.0.1:{PORT}")
            page.click("#rf-offered button >> nth=1")
            page.wait_for_selector(".rf-heat")
            page.wait_for_timeout(500)
            page.screenshot(path=out / f"{name}.png", full_page=True)
            small = Image.open(out / f"{name}.png").convert("RGB").quantize(COLOURS)
            small.save(out / f"{name}.png", optimize=True)
        browser.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="Pictures of the web page for the README.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write app-desktop.png and app-phone.png to")
    parser.add_argument("--model", help="a classifier that is there already")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        model = arguments.model or str(make_classifier(Path(name)))
        page = subprocess.Popen([sys.executable, str(SCRIPTS / "app.py"), "--model", model, "--port", str(PORT)])
        try:
            for _ in range(600):
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{PORT}", timeout=5)
                    break
                except OSError:
                    time.sleep(0.2)
            photograph_page(arguments.out)
        finally:
            page.terminate()


if __name__ == "__main__":
    main()
