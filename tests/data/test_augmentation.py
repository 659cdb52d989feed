"""Changes of texts, and rows that change with every epoch."""

import random

import pytest
from datasets import Dataset

from baichuan_hf.data import masking
from baichuan_hf.data.augmentation import AugmentedRows, delete_words, load_augmentation, swap_words


@pytest.fixture(autouse=True)
def without_jieba(monkeypatch):
    monkeypatch.setattr(masking.importlib.util, "find_spec", lambda name: None)


TEXT = "The cats, 春天来了 again"


def test_deletion_leaves_words_out_and_never_all():
    found = {delete_words(TEXT, probability=0.3) for _ in range(200)}
    assert len(found) > 20
    assert all(all(sign in letters for sign in text) for text in found for letters in [iter(TEXT)])  # subsequences
    assert delete_words(TEXT, probability=0.0) == delete_words(TEXT, probability=1.0) == TEXT
    lengths = [len(delete_words("字" * 1000, probability=0.1)) for _ in range(5)]
    assert all(860 < length < 940 for length in lengths)


def test_swap_keeps_the_words():
    found = {swap_words(TEXT) for _ in range(200)}
    assert all(sorted(text) == sorted(TEXT) for text in found)
    assert TEXT not in found  # its words are all different
    assert swap_words("one two") == "two one"
    assert [swap_words(text) for text in ("", " ", "one")] == ["", " ", "one"]


def test_steps_follow_each_other(tmp_path, monkeypatch):
    (tmp_path / "my_changes.py").write_text("def shout(text):\n    return text.upper()\n")
    monkeypatch.chdir(tmp_path)
    assert load_augmentation(["swap", "my_changes:shout", lambda text: text + "!"])("one two") == "TWO ONE!"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        pytest.param(
            "translate", "--augment 'translate': unknown; there is delete, swap, or module:function", id="name"
        ),
        pytest.param("no_such_module:f", "No module named 'no_such_module' .looked in", id="module"),
        pytest.param("json:no_such", "json has no function 'no_such'", id="function"),
    ],
)
def test_what_is_no_function_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        load_augmentation([name])


def test_rows_change_with_epoch_seed_and_place_and_with_nothing_else():
    rows = Dataset.from_dict({"text": [TEXT] * 4, "label": [0, 1, 0, 1]})

    def made(seed=0):
        return AugmentedRows(
            rows, swap_words, lambda batch: {"length": [len(t) for t in batch["text"]]} | batch, seed=seed
        )

    first = list(map(made().__getitem__, range(4)))
    state = random.getstate()
    again = made()
    assert [again[index] for index in (3, 2, 1, 0)][::-1] == first
    assert random.getstate() == state
    assert [row["label"] for row in first] == [0, 1, 0, 1]
    assert len({row["text"] for row in first}) > 1
    again.set_epoch(1)
    assert [again[index] for index in range(4)] != first
    assert [made(seed=1)[index] for index in range(4)] != first
    with pytest.raises(TypeError, match="an augmentation returned NoneType, not str, for 'The cats"):
        AugmentedRows(rows, lambda text: None, dict, seed=0)[0]
