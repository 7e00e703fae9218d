"""`retfound NAME`."""

import importlib.util
import subprocess
import sys

import pytest

from retfound_hf import cli
from retfound_hf.errors import BadArgumentError

PRESENT = [name for name, (module, _, _) in cli.COMMANDS.items() if importlib.util.find_spec(f"retfound_hf.{module}")]


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_help_lists_every_command(words, capsys):
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    for name, (_, _, line) in cli.COMMANDS.items():
        assert f"  {name} " in said and line in said


def test_unknown_command_suggests_the_nearest(capsys):
    assert cli.main(["finetun", "x"]) == 2
    said = capsys.readouterr().err
    assert "did you mean finetune?" in said and said.count("\n") == 1
    with pytest.raises(BadArgumentError) as error:
        cli.command("zzz")
    assert error.value.value == "zzz" and set(error.value.accepted) == set(cli.COMMANDS)


@pytest.mark.parametrize("name", PRESENT)
def test_command_exists_and_has_help(name, capsys):
    with pytest.raises(SystemExit) as done:
        cli.main([name, "--help"])
    assert done.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith("usage:") and "--" in said


@pytest.mark.parametrize("name", PRESENT)
def test_command_refuses_an_unknown_option_in_one_line(name, capsys):
    assert cli.main([name, "--no_such_option_at_all", "1"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1


def test_conversion_is_present():
    assert "convert_checkpoint" in PRESENT


def test_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "retfound_hf.cli", "nothing"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2 and "nothing" in done.stderr and done.stderr.count("\n") == 1
