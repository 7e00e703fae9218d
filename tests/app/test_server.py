"""The page as a server: what it accepts, sends and keeps, and that visitors do not meet; the command's options."""

import gc
import re
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import httpx
import numpy as np
import pydicom
import pytest
from gradio_client import Client, handle_file
from PIL import Image

from retfound_hf.app.predictor import Reader
from retfound_hf.app.server import ALL_LOGINS, LOGINS, PASSWORD, AppArguments, main, serve
from retfound_hf.app.uploads import private_folder
from retfound_hf.cli import main as retfound
from retfound_hf.errors import BadArgumentError, MissingPackageError

FETCHES = re.compile(
    r"""(?:<(?:script|img|iframe|source)[^>]*\ssrc|<link[^>]*\shref)\s*=\s*["'](?:https?:)?//([^"']+)"""
)


def numbers(html: str) -> dict[str, float]:
    found = re.findall(r'rf-name">(.*?)</span>.*?rf-value">(.*?)%', html, re.S)
    return {name: float(value) for name, value in found}


def wait_for(met: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def client_of(address: str, **options) -> Client:
    return Client(address, verbose=False, **options)


def test_nothing_comes_from_elsewhere_and_nothing_is_reported(served):
    answer = httpx.get(served.url)
    html, policy = answer.text, answer.headers["content-security-policy"]
    assert FETCHES.findall(html) == [] and "fonts.googleapis" not in html and "cdnjs" not in html
    assert "default-src 'self'" in policy and "http" not in policy
    assert not re.search(r"@import|url\(\s*['\"]?(https?:)?//", html)
    config = httpx.get(f"{served.url}/config").json()
    assert config["analytics_enabled"] is False and config["run_history"] is False and config["footer_links"] == []
    assert httpx.get(f"{served.url}/monitoring/summary").status_code >= 400


def test_visitors_with_different_and_with_equal_files(served, reader: Reader, photographs):
    """Four visitors at once, two with each photograph: all get their own numbers, and no file is lost or left."""
    expected = [100 * reader.answer(Image.open(path)).scores for path in photographs]
    clients = [client_of(served.url) for _ in range(4)]
    together = threading.Barrier(len(clients))

    def visit(number: int) -> None:
        for turn in range(3):
            together.wait(timeout=60)
            index = (number // 2 + turn) % 4
            html, *_ = clients[number].predict(handle_file(photographs[index]), api_name="/answer")
            assert f"{photographs[index].name} ·" in html
            assert np.allclose([numbers(html)[name] for name in reader.class_names], expected[index], atol=0.06)

    with ThreadPoolExecutor(len(clients)) as pool:
        list(pool.map(visit, range(len(clients))))
    assert served.files() == []


def test_a_batch_keeps_nobody_waiting(served, photographs):
    """A visitor is answered while the batch of another one runs, and both get what is theirs."""
    batch = client_of(served.url).submit([handle_file(path) for path in photographs * 10], None,
                                         api_name="/classify_all")  # fmt: skip
    one = client_of(served.url)
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
    shown = str(client_of(served.url).predict(handle_file(tmp_path / "scan.dcm"), api_name="/answer"))
    assert "scan.dcm · 400 × 300 pixels" in shown and "rf-headline" in shown
    assert "Doe^Jane" not in shown and "PID12345" not in shown


def test_paths_and_addresses_are_not_read(served, photographs):
    """A program that claims to have uploaded a file gets nothing of it."""
    address = f"{served.url}/gradio_api/call/answer"
    for path in (str(photographs[0]), "/etc/hostname", f"{served.url}/favicon.ico", str(served.temporary)):
        file = {"path": path, "orig_name": "x.png", "meta": {"_type": "gradio.FileData"}}
        event = httpx.post(address, json={"data": [file]}).json()["event_id"]
        said = httpx.get(f"{address}/{event}").text
        assert said.startswith("event: error") and "rf-headline" not in said, path
    assert photographs[0].is_file()
    assert httpx.get(f"{served.url}/gradio_api/file={photographs[0]}").status_code >= 400


def test_large_uploads_are_refused(served):
    answer = httpx.post(f"{served.url}/gradio_api/upload", files={"files": ("large.png", bytes(2 * 2**20))})
    assert answer.status_code == 413 and served.files() == []


def test_a_password_is_asked_for(serve_here):
    url = serve_here(credentials=("eye", "open sesame")).local_url
    for place in ("config", "gradio_api/upload_progress?upload_id=1"):
        assert httpx.get(f"{url}{place}").status_code == 401
    html = httpx.get(url).text
    assert FETCHES.findall(html) == [] and "rf-header" not in html
    login = {"username": "eye", "password": "wrong"}
    assert httpx.post(f"{url}login", data=login).status_code == 400
    client_of(url, auth=("eye", "open sesame"))


def test_few_tries_to_log_in(serve_here):
    url = serve_here(credentials=("eye", "open sesame")).local_url
    for path in ("login", "login/") * LOGINS:
        last = httpx.post(f"{url}{path}", data={"username": "eye", "password": "wrong"}).status_code
    assert last == 429
    assert httpx.post(f"{url}login", data={"username": "eye", "password": "open sesame"}).status_code == 429


def test_few_tries_to_log_in_whatever_addresses_a_proxy_names(serve_here):
    url = serve_here(credentials=("eye", "open sesame")).local_url
    with httpx.Client() as visitor:
        for number in range(ALL_LOGINS):
            last = visitor.post(f"{url}login", data={"username": "eye", "password": "wrong"},
                                headers={"X-Forwarded-For": f"10.0.0.{number}"}).status_code  # fmt: skip
            assert last == 400, number
    right = {"username": "eye", "password": "open sesame"}
    assert httpx.post(f"{url}login", data=right, headers={"X-Forwarded-For": "10.0.1.1"}).status_code == 429


def test_doors_beside_the_page_and_large_requests_are_shut(served):
    for place in ("proxy=http://localhost/", "stream/1", "process_recording", "component_server", "vibe-edit/"):
        for answer in (httpx.get(f"{served.url}/gradio_api/{place}"), httpx.post(f"{served.url}/gradio_api/{place}")):
            assert answer.status_code == 404, place
    for content in (b"{" + bytes(2 * 2**20), iter([b"{", *[bytes(2**18)] * 8])):  # with its length, and in parts
        answer = httpx.post(f"{served.url}/gradio_api/call/answer", content=content,
                            headers={"Content-Type": "application/json"})  # fmt: skip
        assert 400 <= answer.status_code < 500


def test_names_that_lead_here_from_elsewhere_are_refused(serve_here):
    url = serve_here(allowed_hosts=["eyes.clinic.example"]).local_url
    for host in (
        "evil.example",
        "evil.example:80",
        "127.0.0.1.evil.example",
        "",
        "[::1",
        "::1",
        "localhost.evil.example",
    ):
        assert httpx.get(f"{url}config", headers={"Host": host}).status_code == 400, host
    for host in ("localhost", "LOCALHOST:7860", "192.168.0.7:7860", "[::1]:7860", "eyes.clinic.example"):
        assert httpx.get(f"{url}config", headers={"Host": host}).status_code == 200, host


def test_a_broken_off_upload_is_removed(serve_here, monkeypatch, tmp_path):
    monkeypatch.setattr("retfound_hf.app.page.SWEPT_EVERY", 0.2)
    monkeypatch.setattr("retfound_hf.app.page.SWEPT_AFTER", 1)
    url = httpx.URL(serve_here().local_url)
    part = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\n' + b"PIXELS" * 300_000
    head = f"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: {2 * len(part)}\r\n\r\n"
    with socket.create_connection((url.host, url.port)) as visitor:
        visitor.sendall(f"POST /gradio_api/upload HTTP/1.1\r\nHost: {url.host}\r\n{head}".encode() + part)
        found = lambda: [path for path in tmp_path.glob("retfound-app-*/**/*") if path.is_file()]  # noqa: E731
        wait_for(found)
    wait_for(lambda: not found())


def test_what_a_killed_page_left_is_removed_and_what_a_running_one_has_is_not(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    running = private_folder()
    killed = tmp_path / "retfound-app-killed"
    killed.mkdir()
    (killed / "eye.png").write_bytes(b"PATIENT")
    (tmp_path / "retfound-app-killed.lock").touch()
    assert private_folder() != running and running.exists() and not killed.exists()


def test_the_sweep_takes_orphans_and_no_batch(serve_here, photographs, monkeypatch, tmp_path):
    """Uploads are swept after three seconds: a batch that runs for four and one that waits for it lose none."""
    monkeypatch.setattr("retfound_hf.app.page.SWEPT_EVERY", 0.2)
    monkeypatch.setattr("retfound_hf.app.page.SWEPT_AFTER", 3)
    scores = Reader.scores
    monkeypatch.setattr(Reader, "scores", lambda *words: time.sleep(1.2) or scores(*words))
    url = serve_here().local_url
    (orphan,) = httpx.post(f"{url}gradio_api/upload", files={"files": ("eye.png", b"x")}).json()
    assert Path(orphan).is_file() and Path(orphan).is_relative_to(tmp_path)
    files, one, other = [handle_file(path) for path in photographs], client_of(url), client_of(url)
    runs = one.submit(files * 3, None, api_name="/classify_all")
    while "max=" not in str(runs.outputs()[-1:]):
        time.sleep(0.05)
    waits = other.submit(files, None, api_name="/classify_all")
    for batch, count in ((runs, 12), (waits, 4)):
        last = batch.result(timeout=120)[0]
        assert f"{count} images classified" in last and "could not be read" not in last
    assert "Waiting for 1 " in str(waits.outputs()[0])
    assert [path for path in tmp_path.glob("retfound-app-*/**/*") if path.is_file()] == []
    assert list(tmp_path.glob("retfound-app-*/batch-*")) == []


def strings_within(root: object) -> list[str]:
    """Every string that can be reached from an object, but for those of modules and classes."""
    seen: set[int] = set()
    todo, found = [root], []
    while todo:
        one = todo.pop()
        if id(one) in seen or isinstance(one, (ModuleType, type)):
            continue
        seen.add(id(one))
        if isinstance(one, str):
            found.append(one)
        todo += gc.get_referents(one)
    return found


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of what is looked at
def test_an_image_is_forgotten_whether_the_tab_stays_open_or_is_closed(serve_here, photographs, monkeypatch):
    monkeypatch.setenv("GRADIO_HEARTBEAT_INTERVAL", "0.2")
    monkeypatch.setattr("retfound_hf.app.uploads.KEPT_SECONDS", 3)
    page = serve_here()
    clients, sessions, photos = [client_of(page.local_url) for _ in range(2)], [], []
    for client, path in zip(clients, photographs[:2], strict=True):
        _, picture, *_ = client.predict(handle_file(path), api_name="/answer")
        photos += re.findall(r'class="rf-photo" src="([^"]+)"', picture)
        sessions.append(page.app.state_holder.session_data[client.session_hash])
        (kept,) = (value for value in sessions[-1].state_data.values() if value is not None)
        assert kept.photo == photos[-1] and not any(isinstance(value, Image.Image) for value in vars(kept).values())
    with httpx.stream("GET", f"{page.local_url}gradio_api/heartbeat/{client.session_hash}") as alive:
        next(alive.iter_lines())
    del kept, picture
    for _ in range(100):
        if not any(session.state_data for session in sessions):
            break
        time.sleep(0.1)
    assert [session.is_closed for session in sessions] == [False, True]
    remembered = strings_within([*sessions, vars(page._queue)])
    assert len(set(photos)) == 2 and not any(photo in text for text in remembered for photo in photos)


def test_loopback_without_a_password_unless_told_otherwise(monkeypatch, tmp_path):
    arguments = AppArguments("folder")
    assert (arguments.host, arguments.port, arguments.credentials) == ("127.0.0.1", 7860, None)
    assert arguments.limits.upload_bytes == 200 * 2**20
    monkeypatch.setenv(PASSWORD, "from-environment")
    assert AppArguments("folder", user="eye").credentials == ("eye", "from-environment")
    (tmp_path / "password").write_text("from-file\nsecond line\n")
    assert AppArguments("folder", user="eye", password_file=str(tmp_path / "password")).credentials[1] == "from-file"


@pytest.mark.parametrize(
    ("options", "field"),
    [({"user": "eye"}, "user"), ({"password_file": "x"}, "password_file"),
     ({"user": "eye", "password_file": "/nowhere"}, "password_file"), ({"port": 0}, "port"),
     ({"max_upload_mb": 0}, "max_upload_mb"), ({"max_images": -1}, "max_images")],
)  # fmt: skip
def test_wrong_options_are_refused(options, field, monkeypatch):
    monkeypatch.delenv(PASSWORD, raising=False)
    with pytest.raises(BadArgumentError) as error:
        _ = AppArguments("folder", **options).credentials
    assert error.value.field == field and error.value.value in options.values()


def test_a_password_is_not_an_option(capsys):
    assert retfound(["app", "--model", "x", "--password", "secret"]) == 2
    said = capsys.readouterr().err
    assert "--password_file" in said and "secret" not in said


def test_the_missing_extra_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError) as error:
        serve("x")
    assert error.value.extra == "app"


def test_a_taken_port_is_said_before_the_model_is_loaded():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(BadArgumentError) as error:
            main(["--model", "no-such-folder", "--port", str(port)])
    assert (error.value.field, error.value.value) == ("port", port)
