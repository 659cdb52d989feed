"""`baichuan-hf serve`; what the server answers is in tests/serving."""

import pytest


def test_missing_packages(run, monkeypatch):
    monkeypatch.setattr("transformers.utils.import_utils.is_serve_available", lambda: False)
    result = run("serve", "tiny")
    assert result.exit_code == 1
    assert "needs fastapi, uvicorn and openai: pip install 'baichuan-hf[serve]'" in " ".join(result.stderr.split())


def test_options_are_those_of_transformers(run):
    for package in ("fastapi", "openai"):
        pytest.importorskip(package, reason=f"needs {package}: pip install 'baichuan-hf[serve]'")
    result = run("serve", "--help")
    assert result.exit_code == 0, result.output
    for words in ("baichuan-hf serve [OPTIONS]", "transformers' own server", "--continuous-batching", "--attn-impl"):
        assert words in result.stdout
    assert run("serve", "tiny", "--prot", "1").exit_code == 2
    missing = run("serve", "no/such/folder")
    assert missing.exit_code == 1
    assert "no/such/folder: no such folder, and no name of a model on the Hub" in missing.stderr
