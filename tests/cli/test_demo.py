"""`baichuan-hf demo`, with a model too small and too random to learn much: what it does, not how well."""

import csv
import json
from collections import Counter

import baichuan_hf.cli.demo
from baichuan_hf.cli.demo import REVIEWS
from tests.helpers.checkpoint import write_csv


def rows(split):
    with (REVIEWS / f"{split}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_reviews_are_balanced_and_no_two_are_equal():
    train, test = rows("train"), rows("test")
    for split, share in ((train, 160), (test, 40)):
        counts = Counter((row["language"], row["label"]) for row in split)
        assert counts == {(language, label): share for language in ("zh", "en") for label in ("positive", "negative")}
    assert len({row["review"] for row in train + test}) == 800


def test_demo_shows_saves_and_loads_back(run, checkpoint, tmp_path, monkeypatch):
    write_csv(tmp_path / "train.csv", rows("train")[:64])
    write_csv(tmp_path / "test.csv", rows("test")[:16])
    monkeypatch.setattr(baichuan_hf.cli.demo, "REVIEWS", tmp_path)
    result = run("demo", "--model", checkpoint, "--output-dir", tmp_path / "demo")
    assert result.exit_code == 0, result.output
    results = json.loads((tmp_path / "demo" / "all_results.json").read_text())
    after = f"{results['eval_accuracy']:.1%}"
    lines = {line.split("  ")[1].strip(): line.split()[-2:] for line in result.stdout.splitlines() if "%" in line}
    assert lines["after, with the adapter"][0] == after
    assert lines["merged, fresh process"][-1] == after
    assert {"adapter_model.safetensors", "merged"} <= {path.name for path in (tmp_path / "demo").iterdir()}
    assert "从前有一座山，" in result.stdout
