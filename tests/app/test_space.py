"""The files of a Space."""

import ast

import pytest
import yaml

from retfound_hf.app.space import write_space


def test_the_space_serves_the_model(tmp_path):
    files = write_space(
        tmp_path, "org/my-classifier", license="cc-by-nc-4.0", package="retfound-hf[app] @ git+https://x"
    )
    assert [path.name for path in files] == ["app.py", "requirements.txt", "README.md"]
    assert (tmp_path / "requirements.txt").read_text() == "retfound-hf[app] @ git+https://x\n"
    _, front, text = (tmp_path / "README.md").read_text().split("---\n", 2)
    facts = yaml.safe_load(front)
    assert facts["sdk"] == "gradio" and facts["app_file"] == "app.py" and facts["models"] == ["org/my-classifier"]
    assert facts["title"] == "my-classifier" and facts["license"] == "cc-by-nc-4.0"
    assert tuple(map(int, facts["sdk_version"].split(".")[:2])) >= (6, 31)
    assert "not a medical device" in text


def test_its_program_calls_what_exists(tmp_path, monkeypatch):
    write_space(tmp_path, "org/my-classifier")
    calls = []
    monkeypatch.setattr("retfound_hf.app.server.serve", lambda *words, **options: calls.append((words, options)))
    exec(compile(ast.parse((tmp_path / "app.py").read_text()), "app.py", "exec"), {})
    assert calls == [(("org/my-classifier",), {"host": "0.0.0.0", "port": 7860})]


@pytest.mark.parametrize("name", ['a"b', "no slash", "a/b/c", "a/b\n"])
def test_names_that_are_no_model_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="no model of the Hub"):
        write_space(tmp_path, name)
