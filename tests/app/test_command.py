"""What the command takes and refuses before anything is loaded."""

import socket

import pytest

from retfound_hf.app.server import PASSWORD, AppArguments, main, serve
from retfound_hf.cli import main as retfound
from retfound_hf.errors import RetFoundError


def test_loopback_and_nobody_asked_by_default():
    arguments = AppArguments("folder")
    assert (arguments.host, arguments.port, arguments.credentials) == ("127.0.0.1", 7860, None)
    assert arguments.limits.upload_bytes == 200 * 2**20


def test_password_comes_from_the_environment_or_a_file(monkeypatch, tmp_path):
    monkeypatch.delenv(PASSWORD, raising=False)
    with pytest.raises(RetFoundError, match=f"has no password; set {PASSWORD} or give --password_file"):
        _ = AppArguments("folder", user="eye").credentials
    monkeypatch.setenv(PASSWORD, "from-environment")
    assert AppArguments("folder", user="eye").credentials == ("eye", "from-environment")
    (tmp_path / "password").write_text("from-file\nsecond line\n")
    assert AppArguments("folder", user="eye", password_file=str(tmp_path / "password")).credentials[1] == "from-file"
    with pytest.raises(RetFoundError, match="cannot be read: No such file"):
        _ = AppArguments("folder", user="eye", password_file=str(tmp_path / "nowhere")).credentials
    with pytest.raises(RetFoundError, match="--password_file needs --user"):
        _ = AppArguments("folder", password_file="x").credentials


def test_a_password_is_no_option(capsys):
    assert retfound(["app", "--model", "x", "--password", "secret"]) == 2
    said = capsys.readouterr().err
    assert "unknown option --password; did you mean --password_file?" in said and "secret" not in said


@pytest.mark.parametrize(("option", "value"), [("port", "0"), ("max_upload_mb", "0"), ("max_images", "-1")])
def test_numbers_out_of_range_are_refused(option, value):
    with pytest.raises(RetFoundError, match=f"--{option} {value}"):
        main(["--model", "x", f"--{option}", value])


def test_the_missing_extra_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RetFoundError, match=r"pip install 'retfound-hf\[app\]'"):
        serve("x")


def test_a_taken_port_is_said(classifier_folder):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(RetFoundError, match=f"port {port} on 127.0.0.1 is taken; choose another with --port"):
            serve(str(classifier_folder), port=port, wait=False)
