"""`python -m baichuan_hf.benchmarks.readers`: what others read from our files."""

import pytest

from baichuan_hf.benchmarks import readers
from baichuan_hf.benchmarks.rows import read_rows
from tests.helpers import REPOSITORY


RESULTS = REPOSITORY / "tests" / "benchmarks" / "readers.csv"
LLAMA = ("Llama", "Llama's adapter", "CTranslate2", "MLX")
LOSSY = ("GGUF f16", "GGUF Q8_0", "CTranslate2 int8")


def check(rows):
    for row in rows:
        if row["positions"] == "alibi" and row["reader"].startswith(LLAMA):
            assert row["refused"].startswith("position_embedding_type='alibi' cannot become Llama")
            assert row["max_difference"] == row["tokens_equal"] == ""
        elif row["reader"] in LOSSY:
            assert not row["refused"]
            assert 0 < float(row["max_difference"]) < 0.1 * float(row["largest_logit"])
        else:
            assert float(row["max_difference"]) < 2e-4, row
            assert row["tokens_equal"] == row["tokens"] == "80"


def test_rows_and_documentation():
    rows = read_rows(RESULTS)
    pairs = {(row["model"], row["reader"]) for row in rows}
    assert pairs == {(model, reader) for model in readers.MODELS for reader in readers.READERS}
    check(rows)
    for name in ("conversion.md", "conversion.zh-CN.md"):
        text = (REPOSITORY / "docs" / name).read_text(encoding="utf-8")
        for line in readers.table(rows).splitlines()[2:]:
            assert line.partition(" | ")[2] in text


@pytest.mark.slow
@pytest.mark.parametrize("name", ["baichuan2-7b", "tiny-alibi"])
def test_all_readers_that_are_installed(name):
    rows = readers.measure(name)
    assert {row["reader"] for row in rows} >= {"original layout", "remote code", "Llama", "adapter", "Llama's adapter"}
    check(rows)


def test_reader_that_is_not_installed_is_left_out(monkeypatch, capsys):
    absent = readers.Reader(lambda sample: pytest.fail("was read"), "no-such-package")
    monkeypatch.setitem(readers.READERS, "other", absent)
    assert readers.measure("tiny-alibi", ["other"]) == []
    assert capsys.readouterr().out == "other: left out: pip install no-such-package\n"


def test_what_differs_is_seen():
    """A reader that is off in one logit and one token."""

    def other(sample):
        logits = sample.expected.logits.clone()
        logits[1, 2, 3] += 0.5
        return readers.Read(
            logits, [row[:-1] + [row[-1] ^ (index == 0)] for index, row in enumerate(sample.expected.tokens)]
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(readers.READERS, "other", readers.Reader(other, "transformers"))
        (row,) = readers.measure("tiny-alibi", ["other"])
    assert float(row["max_difference"]) == pytest.approx(0.5, abs=1e-3)
    assert (row["tokens_equal"], row["tokens"]) == ("79", "80")
