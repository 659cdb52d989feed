"""Long texts, which are looked up word by word: the ids of SentencePiece, and all else as from the library."""

import gc
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, normalizers, pre_tokenizers
from transformers import AutoTokenizer

import baichuan_hf
from baichuan_hf import BaichuanTokenizer
from baichuan_hf.model import word_cache
from baichuan_hf.model.sentencepiece_model import BYTE, NORMAL, UNKNOWN, USER_DEFINED, SentencePieceModel
from tests.helpers import golden_folder


# Of every script and width in UTF-8, with all that is special to the model or to the cache.
CHARACTERS = st.sampled_from("aA the'. 1９中国酒店的，。\t\n\u3000▁\0é\u0301ߘאж한😀👍\U0010ffff") | st.characters(
    exclude_categories=["Cs"]
)
TEXT = "The quick brown fox jumps over the lazy dog. 酒店的位置非常好，就在市中心附近。😀 <reserved_5> naïve\n" * 3


def by_library(tokenizer, texts, **options):
    """Asked for this mask, too, it takes the library."""
    encoded = tokenizer(texts, return_special_tokens_mask=True, **options)
    del encoded["special_tokens_mask"]
    return encoded


@pytest.fixture(scope="module", params=["tiny", "baichuan-surrogate", "baichuan2"])
def folder(request):
    if request.param == "tiny":
        return baichuan_hf.bundled_checkpoint("tiny")
    return golden_folder(f"tokenizers/{request.param}")


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def surrogate():
    return AutoTokenizer.from_pretrained(golden_folder("tokenizers/baichuan-surrogate"))


@pytest.fixture(scope="module")
def pieces(tokenizer):
    return [piece.replace("▁", " ") for piece in tokenizer.get_vocab()]


@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_ids_are_those_of_sentencepiece(folder, tokenizer, pieces, data):
    sentencepiece = pytest.importorskip("sentencepiece", reason="needs: pip install 'baichuan-hf[sentencepiece]'")
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    part = st.text(CHARACTERS, max_size=8) | st.sampled_from(pieces)
    texts = data.draw(st.lists(st.lists(part, max_size=30).map("".join), min_size=1, max_size=5))
    texts = [text for text in texts if not any(token in text for token in tokenizer.all_special_tokens)] + [TEXT]
    assert tokenizer(texts)["input_ids"] == model.encode(texts)


def test_zeros_beside_every_character(tokenizer):
    """What stands between words in the cache: with some characters it has the hash of neighbours."""
    for start in range(1, 0xD000, 0x1000):
        text = "".join(f"{chr(code)}\0\0" for code in range(start, start + 0x1000))
        assert tokenizer(text).data == by_library(tokenizer, text).data


PIECES = st.lists(st.text("ab▁中", min_size=2, max_size=4), unique=True, max_size=30)


@settings(deadline=None, max_examples=100)
@given(PIECES, PIECES, st.text("ab ▁中c\0😀", min_size=200, max_size=400))
def test_no_merge_of_any_vocabulary_is_cut(merged, added, text):
    """Also pieces with a space inside or behind, and user-defined ones."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *"ab▁中"]
    types = [UNKNOWN, *[BYTE] * 256, *[NORMAL] * 4]
    for piece in merged + added:
        if piece not in pieces:
            pieces.append(piece)
            types.append(NORMAL if piece in merged else USER_DEFINED)
    model = SentencePieceModel(pieces, [-float(i) for i in range(len(pieces))], types, byte_fallback=True)
    model.add_dummy_prefix = model.remove_extra_whitespaces = False
    tokenizer = BaichuanTokenizer(tokenizer_object=model.build_tokenizer(), unk_token="<unk>")
    assert tokenizer(text).data == by_library(tokenizer, text).data
    assert type(tokenizer._words) is word_cache.WordCache


@pytest.mark.parametrize("edges", [(False, False), (True, False), (True, True)], ids=["none", "bos", "bos-eos"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"add_special_tokens": False},
        {"truncation": True, "max_length": 7},
        {"truncation": "only_first", "max_length": 1000},
        {"truncation": True, "max_length": 1},
        {"max_length": 3},
        {"return_attention_mask": False},
        {"padding": True},
        {"padding": "max_length", "max_length": 300},
        {"truncation": True, "max_length": 7, "stride": 2, "return_overflowing_tokens": True},
        {"split_special_tokens": True},
    ],
    ids=str,
)
def test_options(surrogate, edges, options):
    surrogate.add_bos_token, surrogate.add_eos_token = edges
    texts = [TEXT, "<s>a</s>", "", TEXT[5:]]
    try:
        expected = by_library(surrogate, texts, **options)
    except Exception as error:
        with pytest.raises(type(error)):
            surrogate(texts, **options)
        return
    found = surrogate(texts, **options)
    assert found.data == expected.data
    if "return_overflowing_tokens" not in options:
        assert surrogate(TEXT, **options).data == by_library(surrogate, TEXT, **options).data
        assert surrogate.encode(TEXT, **options | {"return_attention_mask": None}) == expected["input_ids"][0]


def test_truncation_on_the_left(surrogate):
    surrogate.truncation_side, surrogate.add_bos_token = "left", True
    options = {"truncation": True, "max_length": 9}
    assert surrogate([TEXT] * 2, **options).data == by_library(surrogate, [TEXT] * 2, **options).data


def test_encodings_are_there_when_asked_for(tokenizer):
    found, expected = tokenizer([TEXT, "你好"]), by_library(tokenizer, [TEXT, "你好"])
    assert found.is_fast
    assert found.n_sequences == expected.n_sequences
    assert found.tokens(1) == expected.tokens(1)
    assert found.word_ids(0) == expected.word_ids(0)
    assert [found.char_to_token(0, i) for i in range(50)] == [expected.char_to_token(0, i) for i in range(50)]
    assert pickle.loads(pickle.dumps(found))[0].offsets == expected[0].offsets
    assert tokenizer(TEXT, return_offsets_mapping=True)["offset_mapping"] == expected[0].offsets


def test_tokens_added_later_are_found(surrogate):
    before = surrogate(TEXT)["input_ids"]
    surrogate.add_tokens(["brown fox", AddedToken("位置非常", normalized=False)])
    surrogate.add_special_tokens({"additional_special_tokens": ["<|image|>"]})
    added = surrogate.convert_tokens_to_ids(["brown fox", "位置非常", "<|image|>"])
    ids = surrogate(TEXT + "<|image|>")["input_ids"]
    assert set(added) <= set(ids)
    assert set(added).isdisjoint(before)
    assert ids == by_library(surrogate, TEXT + "<|image|>")["input_ids"]


@pytest.mark.parametrize(
    "change",
    [
        lambda library: setattr(library, "normalizer", normalizers.Lowercase()),
        lambda library: setattr(library, "normalizer", None),
        lambda library: setattr(library, "pre_tokenizer", pre_tokenizers.Digits(individual_digits=True)),
        lambda library: setattr(library.model, "dropout", 0.5),
    ],
    ids=["lowercase", "no-normalizer", "pre-tokenizer", "dropout"],
)
def test_a_backend_that_was_changed_is_the_library_s_business(surrogate, change):
    surrogate(TEXT)
    change(surrogate.backend_tokenizer)
    assert surrogate._word_cache([TEXT], {}) is None


@pytest.mark.parametrize("flag", ["lstrip", "rstrip", "single_word"])
def test_added_tokens_that_look_at_their_neighbours_are_the_library_s_business(surrogate, flag):
    surrogate.add_tokens([AddedToken("fox", **{flag: True})])
    assert surrogate(TEXT).data == by_library(surrogate, TEXT).data
    assert surrogate._word_cache([TEXT], {}) is None


def test_half_a_surrogate_pair_is_refused_as_in_a_short_text(surrogate):
    with pytest.raises(Exception) as short:
        surrogate("\ud800")
    with pytest.raises(short.type):
        surrogate(TEXT + "\ud800")


def test_a_full_cache_begins_anew(surrogate, monkeypatch):
    monkeypatch.setattr(word_cache, "CAPACITY", 100)
    monkeypatch.setattr(word_cache, "CHUNK", 50)
    texts = [chr(0x4E00 + i) * 7 + f"{i} words" for i in range(300)]
    assert surrogate(texts).data == by_library(surrogate, texts).data
    assert surrogate(texts).data == by_library(surrogate, texts).data


def test_an_empty_text_behind_a_long_one(surrogate):
    assert surrogate([TEXT * 2000, ""])["input_ids"][1] == []


def test_threads_share_it(surrogate):
    texts = [chr(0x4E00 + i) * 7 + f"{i} words" + TEXT for i in range(100)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda text: surrogate(text)["input_ids"], texts))
    assert found == [by_library(surrogate, text)["input_ids"] for text in texts]


def test_it_does_not_travel(surrogate):
    """`datasets` takes the pickle for a fingerprint."""
    before = pickle.dumps(surrogate)
    ids = surrogate(TEXT)["input_ids"]
    assert pickle.dumps(surrogate) == before
    assert pickle.loads(before)(TEXT)["input_ids"] == ids


@pytest.mark.parametrize("enabled", [True, False])
def test_many_short_texts_are_not_searched_for_garbage(surrogate, enabled):
    """Each search looks at all lists there are; whether Python searches is the caller's business before and behind."""
    texts = ["春天来了", "spring"] * 4000
    expected = surrogate(texts)
    searches = []
    (gc.enable if enabled else gc.disable)()
    gc.callbacks.append(lambda phase, info: searches.append(phase))
    try:
        found = surrogate(texts)
        assert len(searches) < 10
        assert gc.isenabled() == enabled
        with pytest.raises(TypeError):
            surrogate([*texts, "\ud800"])
        assert gc.isenabled() == enabled
    finally:
        gc.callbacks.pop()
        gc.enable()
    assert found["input_ids"] == expected["input_ids"] and found["attention_mask"] == expected["attention_mask"]
