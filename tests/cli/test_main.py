"""The frame of the command line."""

import subprocess
import sys

import pytest

import baichuan_hf
from tests.helpers import REPOSITORY


COMMANDS = ["bench", "chat", "convert", "demo", "generate", "info", "train"]


def test_version(run):
    assert run("--version").stdout.split() == ["baichuan-hf", baichuan_hf.__version__]


def test_help_lists_every_command(run):
    result = run("--help")
    assert result.exit_code == 0
    assert all(f"│ {command}" in result.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_has_an_example(run, command):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"Example: baichuan-hf {command}" in result.stdout


def test_wrong_input_is_one_line_and_no_traceback():
    command = [sys.executable, "-m", "baichuan_hf.cli.main", "train", "--task", "classify", "--train-file", "no.csv"]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 1
    # The last line: bitsandbytes, where it is installed, writes one of its own on import.
    assert result.stderr.splitlines()[-1] == f"Error: no.csv: no such file (looked in {REPOSITORY})"
    assert "Traceback" not in result.stderr


def test_wrong_command_line_exits_with_2(run):
    assert run("generate").exit_code == 2
    assert run("unheard-of").exit_code == 2


def test_traceback_on_request(run, monkeypatch):
    monkeypatch.setenv("BAICHUAN_HF_TRACEBACK", "1")
    result = run("train", "--task", "classify", "--train-file", "absent.csv")
    assert isinstance(result.exception, FileNotFoundError)
