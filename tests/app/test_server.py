"""The page as a server: what it sends, what it keeps, and that visitors do not meet."""

import json
import re
import threading
import time
import urllib.error
import urllib.request
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pydicom
import pytest
from gradio_client import Client, handle_file
from PIL import Image

from retfound_hf.app.predictor import Reader
from retfound_hf.app.server import serve

FETCHES = re.compile(
    r"""(?:<(?:script|img|iframe|source)[^>]*\ssrc|<link[^>]*\shref)\s*=\s*["'](?:https?:)?//([^"']+)"""
)


@pytest.fixture(scope="module")
def served(serve_page, classifier_folder):
    return serve_page("--model", str(classifier_folder), "--max_upload_mb", "1")


def fetch(url: str) -> tuple[str, dict[str, str]]:
    with urllib.request.urlopen(url, timeout=20) as answer:
        return answer.read().decode(), dict(answer.headers)


def numbers(html: str) -> dict[str, float]:
    found = re.findall(r'rf-name">(.*?)</span>.*?rf-value">(.*?)%', html, re.S)
    return {name: float(value) for name, value in found}


def test_the_page_asks_for_nothing_from_elsewhere(served):
    html, headers = fetch(served.url)
    assert FETCHES.findall(html) == [] and "fonts.googleapis" not in html and "cdnjs" not in html
    policy = {name.lower(): value for name, value in headers.items()}["content-security-policy"]
    assert "default-src 'self'" in policy and "http" not in policy
    assert not re.search(r"@import|url\(\s*['\"]?(https?:)?//", html)


def test_telemetry_history_and_monitoring_are_off(served):
    config = json.loads(fetch(f"{served.url}/config")[0])
    assert config["analytics_enabled"] is False and config["run_history"] is False and config["footer_links"] == []
    with pytest.raises(urllib.error.HTTPError):
        fetch(f"{served.url}/monitoring/summary")


def test_an_answer_and_nothing_left_on_disk(served, reader: Reader, photographs):
    client = Client(served.url, verbose=False)
    html, *_ = client.predict(handle_file(photographs[0]), api_name="/answer")
    expected = reader.answer(Image.open(photographs[0])).scores
    assert np.allclose([numbers(html)[name] for name in reader.class_names], 100 * expected, atol=0.06)
    assert "For research on" not in html and served.files() == []


def test_wrong_files_get_a_message_and_are_removed(served, tmp_path: Path):
    client = Client(served.url, verbose=False)
    (tmp_path / "letter.png").write_bytes(b"Dear doctor")
    html, *_ = client.predict(handle_file(tmp_path / "letter.png"), api_name="/answer")
    assert 'role="alert"' in html and "letter.png: it is not an image" in html.lower()
    assert served.files() == []


def test_two_users_with_different_and_with_equal_files(served, reader: Reader, photographs):
    """Six visitors at once, two with each photograph: each gets his own numbers, and no file is lost."""
    expected = [100 * reader.answer(Image.open(path)).scores for path in photographs]
    clients = [Client(served.url, verbose=False) for _ in range(6)]
    together = threading.Barrier(len(clients))

    def visit(number: int) -> list[np.ndarray]:
        found = []
        for turn in range(3):
            together.wait(timeout=60)
            path = photographs[(number // 2 + turn) % 4]
            html, *_ = clients[number].predict(handle_file(path), api_name="/answer")
            assert f"{path.name} ·" in html
            found.append(np.array([numbers(html)[name] for name in reader.class_names]))
        return found

    with ThreadPoolExecutor(len(clients)) as pool:
        results = list(pool.map(visit, range(len(clients))))
    for number, turns in enumerate(results):
        for turn, found in enumerate(turns):
            assert np.allclose(found, expected[(number // 2 + turn) % 4], atol=0.06), (number, turn)
    assert served.files() == []


def test_a_batch_keeps_nobody_waiting(served, photographs):
    """A visitor is answered while the batch of another one runs, and both get what is theirs."""
    one, other = Client(served.url, verbose=False), Client(served.url, verbose=False)
    files = [handle_file(path) for path in photographs * 10]
    batch = other.submit(files, None, api_name="/classify_all")
    while "max=" not in str(batch.outputs()[-1:]):
        assert not batch.done()
        time.sleep(0.05)
    html, *_ = one.predict(handle_file(photographs[1]), api_name="/answer")
    assert not batch.done() and f"{photographs[1].name} ·" in html
    assert "40 images classified" in batch.result(timeout=120)[0]
    counts = [int(number) for html, *_ in batch.outputs() for number in re.findall(r'value="(\d+)"', html)]
    assert counts == sorted(counts) and len(set(counts)) >= 5
    assert served.files() == []


def test_dicom_without_its_header(served, tmp_path: Path):
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = pydicom.uid.SecondaryCaptureImageStorage, pydicom.uid.generate_uid()
    dataset.PatientName, dataset.PatientID = "Doe^Jane", "PID12345"
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    pydicom.pixels.set_pixel_data(dataset, noise, "RGB", 8)
    dataset.save_as(tmp_path / "scan.dcm", enforce_file_format=True)
    client = Client(served.url, verbose=False)
    shown = str(client.predict(handle_file(tmp_path / "scan.dcm"), api_name="/answer"))
    assert "scan.dcm · 400 × 300 pixels" in shown and "rf-headline" in shown
    assert "Doe^Jane" not in shown and "PID12345" not in shown


def ask(served, path: str) -> str:
    """What the server streams back when a program claims to have uploaded the file at `path`."""
    file = {"path": path, "orig_name": "x.png", "meta": {"_type": "gradio.FileData"}}
    address = f"{served.url}/gradio_api/call/answer"
    body = json.dumps({"data": [file]}).encode()
    request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        event = json.load(answer)["event_id"]
    return fetch(f"{address}/{event}")[0]


def test_paths_and_addresses_are_not_read(served, photographs):
    for path in (str(photographs[0]), "/etc/hostname", f"{served.url}/favicon.ico", str(served.temporary)):
        said = ask(served, path)
        assert said.startswith("event: error") and "rf-headline" not in said, path
    assert photographs[0].is_file()
    with pytest.raises(urllib.error.HTTPError):
        fetch(f"{served.url}/gradio_api/file={photographs[0]}")


def test_large_uploads_are_refused(served, tmp_path: Path):
    (tmp_path / "large.png").write_bytes(bytes(2 * 2**20))
    client = Client(served.url, verbose=False)
    with pytest.raises(Exception, match=r"413|File size|exceed"):
        client.predict(handle_file(tmp_path / "large.png"), api_name="/answer")
    assert served.files() == []


def test_a_password_is_asked_for(serve_page, classifier_folder, monkeypatch):
    monkeypatch.setenv("RETFOUND_APP_PASSWORD", "open sesame")
    served = serve_page("--model", str(classifier_folder), "--user", "eye")
    for place in ("config", "gradio_api/upload_progress?upload_id=1"):
        with pytest.raises(urllib.error.HTTPError, match="401"):
            fetch(f"{served.url}/{place}")
    html, _ = fetch(served.url)
    assert FETCHES.findall(html) == [] and "rf-header" not in html
    with pytest.raises(Exception, match=r"[Ll]ogin|[Aa]uth|credentials"):
        Client(served.url, auth=("eye", "wrong"), verbose=False)
    Client(served.url, auth=("eye", "open sesame"), verbose=False)


def test_batches_outlast_the_sweep_of_uploads(classifier_folder, photographs, free_port, monkeypatch, tmp_path):
    """Uploads are swept after four seconds: a batch that runs for eight, and one that waits for it, lose none."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("retfound_hf.app.page.SWEPT_EVERY", 0.2)
    monkeypatch.setattr("retfound_hf.app.page.SWEPT_AFTER", 4)
    scores = Reader.scores
    monkeypatch.setattr(Reader, "scores", lambda *words: time.sleep(0.4) or scores(*words))
    with zipfile.ZipFile(tmp_path / "eyes.zip", "w") as archive:
        for number in range(12):
            archive.write(photographs[number % 4], f"{number}.png")
    page = serve(str(classifier_folder), port=free_port(), wait=False)
    try:
        one, other = (Client(page.local_url, verbose=False) for _ in range(2))
        files = [handle_file(path) for path in photographs * 5]
        runs = one.submit(files, None, api_name="/classify_all")
        while "max=" not in str(runs.outputs()[-1:]):
            time.sleep(0.05)
        waits = other.submit([handle_file(tmp_path / "eyes.zip")], None, api_name="/classify_all")
        for batch, said in ((runs, "20 images classified"), (waits, "12 images classified")):
            last = batch.result(timeout=120)[0]
            assert said in last and "could not be read" not in last
        assert "Waiting for 1 batch sent before" in str(waits.outputs()[0])
        assert [path for path in tmp_path.glob("retfound-app-*/**/*") if path.is_file()] == []
        assert list(tmp_path.glob("retfound-app-*/batch-*")) == []
    finally:
        page.close(verbose=False)


def test_an_upload_that_nobody_asks_about_is_removed(classifier_folder, photographs, free_port, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")  # what `serve` sets is taken back
    monkeypatch.setattr("retfound_hf.app.page.SWEPT_EVERY", 1)
    monkeypatch.setattr("retfound_hf.app.page.SWEPT_AFTER", 2)
    page = serve(str(classifier_folder), port=free_port(), wait=False)
    try:
        files = {"files": ("eye.png", photographs[0].read_bytes())}
        (path,) = httpx.post(f"{page.local_url}gradio_api/upload", files=files).json()
        assert Path(path).is_file()
        for _ in range(100):
            if not Path(path).exists():
                break
            time.sleep(0.2)
        assert not Path(path).exists()
    finally:
        page.close(verbose=False)
