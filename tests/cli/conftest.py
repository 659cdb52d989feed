"""What the command-line tests share."""

import pytest
from typer.testing import CliRunner

from baichuan_hf.cli.main import app
from tests.helpers.checkpoint import save_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def run(monkeypatch):
    """Runs `baichuan-hf` with the given words; the result has `exit_code`, `stdout` and `stderr`."""
    monkeypatch.setenv("COLUMNS", "120")

    def invoke(*words, **kwargs):
        return CliRunner().invoke(app, [str(word) for word in words], **kwargs)

    return invoke
