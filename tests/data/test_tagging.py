"""Files of tagged words, the pieces that carry the tags, and the entities."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from baichuan_hf.data.tagging import encode_words, find_entities, load_tagged_splits, read_conll
from tests.helpers.models import golden_folder


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(golden_folder("tokenizers") / "baichuan-surrogate")


def write(path, text):
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        pytest.param("李\tB-PER\n明\tI-PER\n\n好\tO\n", [["李", "明"], ["好"]], id="tabs"),
        pytest.param("EU NNP B-NP B-PER\nrejects VBZ B-VP I-PER\n\nno X X O", [["EU", "rejects"], ["no"]], id="2003"),
        pytest.param("-DOCSTART- -X- O O\n\n\n李 B-PER\n明 I-PER\n \n\n好 O\n\n", [["李", "明"], ["好"]], id="blanks"),
        pytest.param("\ufeff李\tB-PER\r\n \tI-PER\r\n\r\n5\tO\r\n", [["李", " "], ["5"]], id="windows"),
    ],
)
def test_conll_is_read(tmp_path, text, tokens):
    rows = load_tagged_splits(write(tmp_path / "x.conll", text))["train"]
    assert rows["tokens"][:] == tokens
    assert rows["tags"][:] == [["B-PER", "I-PER"], ["O"]]


def test_segmentation_index_is_removed_only_if_all_have_one(tmp_path, caplog):
    assert read_conll(write(tmp_path / "a.conll", "李0\tO\n50\tO\n"))["tokens"][:] == [["李", "5"]]
    assert "a digit ends every token, as in '李0': it is removed" in caplog.text
    assert read_conll(write(tmp_path / "b.conll", "李0\tO\n5\tO\n"))["tokens"][:] == [["李0", "5"]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("李\tO\n明", "line 2 is '明', not a token and a tag; is the file cut off", id="no-tag"),
        pytest.param("李\tO\n明\t", "line 2 is ", id="empty-tag"),
        pytest.param("李\tO\n".encode() + "明".encode()[:2], "line 2 is not UTF-8 .*cut off", id="half-a-character"),
    ],
)
def test_a_file_cut_off_is_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=f"x.conll: {message}"):
        read_conll(write(tmp_path / "x.conll", text))


WORDS = ["北京", "北", "𪚥", "龘", "😀", " ", "", "hello", "a b", "\n", " x", "1984", "．", "\u3000", "é"]


@settings(max_examples=100, deadline=None)
@given(words=st.lists(st.one_of(st.sampled_from(WORDS), st.text(max_size=4)), max_size=8))
@pytest.mark.parametrize("separator", ["", " "])
def test_each_word_is_spelt_by_its_pieces(tokenizer, words, separator):
    encoding, last = encode_words(words, tokenizer, separator=separator)
    assert len(last) == len(words)
    ids, begin = encoding["input_ids"], 0
    for index, (word, place) in enumerate(zip(words, last, strict=True)):
        spelt = (separator if index else "") + word
        if place < 0:
            assert not spelt
        else:
            assert ids[begin : place + 1] == tokenizer(spelt)["input_ids"]
            begin = place + 1
    assert begin == len(ids)


def test_words_beyond_the_length_have_no_piece(tokenizer):
    encoding, last = encode_words(["北", "𪚥", "京"], tokenizer, max_length=5)
    assert (len(encoding["input_ids"]), last) == (5, [0, 4, -1])


@pytest.mark.parametrize(
    ("tags", "entities"),
    [
        pytest.param("", set(), id="none"),
        pytest.param("B-A I-A O B-B", {("A", 0, 1), ("B", 3, 3)}, id="bio"),
        pytest.param("I-A I-A I-B", {("A", 0, 1), ("B", 2, 2)}, id="no-begin"),
        pytest.param("B-A B-A", {("A", 0, 0), ("A", 1, 1)}, id="adjacent"),
        pytest.param("S-A B-A I-A E-A I-A", {("A", 0, 0), ("A", 1, 3), ("A", 4, 4)}, id="bioes"),
        pytest.param("B-A M-A E-A S-B", {("A", 0, 2), ("B", 3, 3)}, id="bmes"),
        pytest.param("B-PER.NAM I-PER.NAM I-PER.NOM", {("PER.NAM", 0, 1), ("PER.NOM", 2, 2)}, id="weibo"),
        pytest.param("B-X-Y I-X-Y", {("X-Y", 0, 1)}, id="hyphen"),
    ],
)
def test_entities(tags, entities):
    assert find_entities(tags.split()) == entities


def test_entities_are_those_of_seqeval():
    seqeval = pytest.importorskip("seqeval.metrics.sequence_labeling")
    generator = random.Random(0)
    names = ["O", *(f"{mark}-{kind}" for mark in "BIES" for kind in ("A", "B-C"))]
    for length in range(300):
        tags = generator.choices(names, k=length % 12)
        assert find_entities(tags) == set(seqeval.get_entities(tags))
