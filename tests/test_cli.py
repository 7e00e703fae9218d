"""`retfound NAME`: help, next steps, completion."""

import importlib.util
import shlex
import subprocess
import sys

import pytest

from retfound_hf import cli
from retfound_hf.errors import BadArgumentError
from retfound_hf.options import parser_of

PRESENT = [name for name, row in cli.COMMANDS.items() if importlib.util.find_spec(f"retfound_hf.{row.module}")]
PARSED = [name for name in PRESENT if name != "completion"]


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_help_lists_every_command_by_task_with_an_example(words, capsys):
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    for task, rows in cli.TASKS.items():
        assert f"\n{task}:\n" in said
        for name, row in rows.items():
            assert f"  {name} " in said and row.line in said and f"retfound {row.example}\n" in said


def test_help_loads_no_library():
    code = (
        "import sys; sys.argv = ['/usr/bin/retfound', '--help']\n"
        "from retfound_hf.cli import main\nmain()\nprint(*sorted(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "numpy", "pandas", "yaml"} & set(done.stdout.splitlines()[-1].split())


def test_help_of_commands_without_a_network_loads_no_torch():
    """The others take options and names from the networks: weights, methods, Trainer."""
    code = (
        "import sys\nfrom retfound_hf.cli import TASKS, main\n"
        "for name in [*TASKS['data'], 'app', 'completion']:\n"
        "    try:\n        main([name, '--help'])\n    except SystemExit:\n        pass\n"
        "print(*sorted(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.count("usage:") == 7 and "torch" not in done.stdout.splitlines()[-1].split()


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


@pytest.mark.parametrize("name", PRESENT)
def test_examples_and_next_steps_are_commands_that_parse(name):
    row = cli.COMMANDS[name]
    for text in (row.example, row.next.removeprefix("retfound ")):
        command, *words = shlex.split(text.split(" > ")[0]) or ["completion"]
        if command != "completion":
            _, unknown = parser_of(cli.command(command)).parse_known_args(words)
            assert not unknown, text
    assert row.example.split()[0] == name and (row.next or name == "completion")


@pytest.mark.parametrize("name", [name for name, row in cli.COMMANDS.items() if "{" in row.next])
def test_next_steps_name_options_of_their_command(name):
    known = {action.dest for action in parser_of(cli.command(name))._actions}
    named = {each for part in cli.re.findall(r"\{([\w|]+)\}", cli.COMMANDS[name].next) for each in part.split("|")}
    assert named <= known


def test_a_next_step_holds_the_values_of_the_command():
    assert "--model_name_or_path 'my run' --data OTHER" in cli.next_step("finetune", {"output_dir": "my run"})
    assert "--model_name_or_path retfound-oct " in cli.next_step("fetch", {"output_dir": None, "name": "retfound-oct"})
    assert "--model_name_or_path OUT " in cli.next_step("convert_checkpoint", {})


def test_the_next_step_is_a_note_after_success(tmp_path, capsys, monkeypatch):
    def make(*words: str) -> tuple[int, str, str]:
        status = cli.main([*words, "--num_patients", "13", "--image_size", "64"])
        return status, *capsys.readouterr()

    out = tmp_path / "images"
    status, said, notes = make("make_synthetic", str(out))
    assert status == 0 and said.split() == [str(out)]
    assert f"Next: {cli.next_step('make_synthetic', {'out': str(out)})}\n" in notes
    status, said, notes = make("make_synthetic", str(out))
    assert status == 2 and not said and "Next" not in notes
    status, said, notes = make("--quiet", "make_synthetic", str(tmp_path / "others"))
    assert status == 0 and said.split() == [str(tmp_path / "others")] and "Next" not in notes
    monkeypatch.setenv("RANK", "1")  # of several processes one says it
    assert "Next" not in make("make_synthetic", str(tmp_path / "more"))[2]


@pytest.fixture(scope="module")
def scripts() -> dict[str, str]:
    parsers = {name: parser_of(cli.command(name)) for name in PARSED}
    return {shell: write(parsers) for shell, write in cli.SHELLS.items()}


def completed(script: str, *words: str) -> list[str]:
    """Completions that bash offers for the last of the words."""
    ask = f'COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}; _retfound; echo "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", f"{script}\n{ask}"], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_bash_completes_commands_options_and_values(scripts):
    bash = scripts["bash"]
    assert completed(bash, "retfound", "") == list(cli.COMMANDS)
    assert completed(bash, "retfound", "fi") == ["finetune"]
    assert set(completed(bash, "retfound", "finetune", "--lora_r")) == {"--lora_rank"}
    assert completed(bash, "retfound", "make_synthetic", "images", "--modality", "") == ["cfp", "oct"]
    assert completed(bash, "retfound", "completion", "") == list(cli.SHELLS)
    assert completed(bash, "retfound", "finetune", "--data", "") == []  # left to names of files


@pytest.mark.parametrize("shell", cli.SHELLS)
def test_every_option_is_in_every_script(scripts, shell):
    for name in PARSED:
        assert name in scripts[shell]
        for flag in cli._flags(parser_of(cli.command(name))):
            assert (f"-l {flag[2:]}" if shell == "fish" else flag) in scripts[shell]


def test_completion_asks_for_the_shell(capsys):
    for words in ([], ["csh"]):
        assert cli.main(["completion", *words]) == 2
        assert "bash, zsh, fish" in capsys.readouterr().err


def test_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "retfound_hf.cli", "nothing"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2 and "nothing" in done.stderr and done.stderr.count("\n") == 1
