"""`baichuan-hf check`."""

import json
import shutil


def test_good_folder(run):
    result = run("check", "tiny")
    assert result.exit_code == 0, result.output
    assert "baichuan2-7b (rope, NormHead), other sizes" in result.stdout
    assert "0 errors, 0 warnings, 0 notes" in result.stdout


def test_errors_come_first_with_their_way_out(run, checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "model")
    (folder / "leftover.py").write_text("")
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-10])
    result = run("check", folder)
    assert result.exit_code == 1
    rows = [line for line in result.stdout.splitlines() if line.strip().startswith(("error", "note"))]
    assert rows[0].split()[:2] == ["error", "files"] and "note" in rows[1]
    assert "Download it again" in " ".join(result.stdout.split())


def test_json(run, checkpoint, tmp_path):
    result = run("check", checkpoint, "--json", "--no-generate")
    assert result.exit_code == 0
    values = json.loads(result.stdout)
    assert values["ok"] and values["generated"] is None and values["findings"] == []
    folder = shutil.copytree(checkpoint, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    result = run("check", folder, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["findings"][0]["way_out"]


def test_no_folder(run):
    result = run("check", "no/folder/here")
    assert result.exit_code == 1
    assert "no such folder" in result.stderr
