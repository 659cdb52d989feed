"""The tokenizer against the original's stored results, sentencepiece, and files that are damaged or hostile."""

import json
import pickle
import random
import shutil
import string
import unicodedata

import pytest
from transformers import AutoTokenizer

import baichuan_hf
from tests.helpers import golden_folder
from tests.helpers.golden import load_golden


TOKENIZERS = ["baichuan-surrogate", "baichuan2"]
SPECIAL = {0: "<unk>", 1: "<s>", 2: "</s>"}


@pytest.fixture(scope="module", params=TOKENIZERS)
def folder(request):
    """The real Baichuan2 tokenizer may not be copied into the repository: only the full golden data has it."""
    return golden_folder(f"tokenizers/{request.param}")


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def expected(folder):
    return json.loads((folder / "tokenizer_expected.json").read_text())


@pytest.fixture
def surrogate():
    return golden_folder("tokenizers/baichuan-surrogate")


@pytest.fixture
def copy(surrogate, tmp_path):
    """A writable copy of the surrogate's folder."""
    target = tmp_path / "tokenizer"
    target.mkdir()
    for name in ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copyfile(surrogate / name, target / name)
    return target


def test_vocabulary_and_special_tokens(tokenizer, expected):
    assert type(tokenizer) is baichuan_hf.BaichuanTokenizer
    assert tokenizer.is_fast
    for name in ("vocab_size", "bos_token_id", "eos_token_id", "unk_token_id", "pad_token_id", "model_max_length"):
        assert getattr(tokenizer, name) == expected[name], name
    assert len(tokenizer) == expected["len"]
    assert sorted(tokenizer.all_special_tokens) == sorted(expected["all_special_tokens"])
    assert tokenizer.model_input_names == expected["model_input_names"]
    assert sorted(tokenizer.get_vocab().values()) == list(range(expected["len"]))


def test_encode(tokenizer, expected):
    wrong = [
        (case["text"], tokenizer.encode(case["text"]), case["ids"])
        for case in expected["encode_cases"]
        if tokenizer.encode(case["text"]) != case["ids"] or tokenizer.tokenize(case["text"]) != case["tokens"]
    ]
    assert len(expected["encode_cases"]) > 200
    assert wrong == []


def test_encode_in_a_batch(tokenizer, expected):
    texts = [case["text"] for case in expected["encode_cases"]]
    assert tokenizer(texts)["input_ids"] == [case["ids"] for case in expected["encode_cases"]]


@pytest.mark.parametrize("kind", ["encode_cases", "decode_cases"])
def test_decode_without_special_tokens(tokenizer, expected, kind):
    cases = expected[kind]
    assert cases
    for case in cases:
        assert tokenizer.decode(case["ids"], skip_special_tokens=True) == case["decoded_skip_special_tokens"], case
        assert tokenizer.convert_ids_to_tokens(case["ids"]) == case["tokens"], case


def runs(ids):
    """`ids` cut at every special token: lists of ordinary ids and single special ids, in order."""
    parts, run = [], []
    for token_id in ids:
        if token_id in SPECIAL:
            parts += [run, token_id]
            run = []
        else:
            run.append(token_id)
    return [*parts, run]


@pytest.mark.parametrize("kind", ["encode_cases", "decode_cases"])
def test_decode_with_special_tokens(tokenizer, expected, kind):
    """The original puts a space that nobody wrote before the text in front of a special token (`hello</s>` becomes
    ` hello</s>`). Ours leaves it out; the test explains every stored result by this one rule."""

    def decode(ids, space):
        text = ""
        parts = runs(ids)
        for i, part in enumerate(parts):
            if isinstance(part, int):
                text += SPECIAL[part]
            elif part:
                text += (space if i < len(parts) - 1 else "") + tokenizer.decode(part)
        return text

    for case in expected[kind]:
        assert decode(case["ids"], " ") == case["decoded"], case
        assert tokenizer.decode(case["ids"]) == decode(case["ids"], ""), case


def test_text_comes_back(tokenizer, expected):
    """Decoding inverts encoding, but for U+2581, which stands for a space in the model's own pieces."""
    for case in expected["encode_cases"]:
        assert tokenizer.decode(tokenizer.encode(case["text"])) == case["text"].replace("\u2581", " ")


def test_bos_and_eos(folder, expected):
    bos = AutoTokenizer.from_pretrained(folder, add_bos_token=True)
    both = AutoTokenizer.from_pretrained(folder, add_bos_token=True, add_eos_token=True)
    for case in expected["bos_and_eos"]:
        assert bos.encode(case["text"]) == case["ids_bos"]
        assert both.encode(case["text"]) == case["ids_bos_eos"]
        assert both.encode(case["text"], add_special_tokens=False) == case["ids_no_special"]
        mask = both(case["text"], return_special_tokens_mask=True)["special_tokens_mask"]
        assert mask == case["special_tokens_mask"]


def test_pairs(folder, tokenizer, expected):
    both = AutoTokenizer.from_pretrained(folder, add_bos_token=True, add_eos_token=True)
    for case in expected["pairs"]:
        # As a batch of one: alone, transformers takes an empty second text for none.
        assert tokenizer([case["a"]], [case["b"]])["input_ids"] == [case["ids"]]
        encoded = both([case["a"]], [case["b"]], return_token_type_ids=True)
        assert encoded["input_ids"] == [case["ids_bos_eos"]]
        assert encoded["token_type_ids"] == [case["token_type_ids_bos_eos"]]


def test_pad_on_the_right(tokenizer, expected):
    padding = expected["batch_padding"]
    encoded = tokenizer(padding["texts"], padding=True, padding_side="right")
    assert encoded["input_ids"] == padding["input_ids"]
    assert encoded["attention_mask"] == padding["attention_mask"]


def test_pad_on_the_left(folder, expected):
    padding = expected["batch_padding"]
    width = len(padding["input_ids"][0])
    encoded = AutoTokenizer.from_pretrained(folder, padding_side="left")(padding["texts"], padding=True)
    for ids, mask, right_ids, right_mask in zip(
        encoded["input_ids"],
        encoded["attention_mask"],
        *(padding[k] for k in ("input_ids", "attention_mask")),
        strict=True,
    ):
        n = sum(right_mask)
        assert ids == [0] * (width - n) + right_ids[:n]
        assert mask == [0] * (width - n) + [1] * n


def test_padding_side_is_kept(copy, tmp_path):
    for side in ("left", "right"):
        AutoTokenizer.from_pretrained(copy, padding_side=side).save_pretrained(tmp_path / side)
        assert AutoTokenizer.from_pretrained(tmp_path / side).padding_side == side


def test_truncation(tokenizer, expected):
    """The text of the stored case is the sixth of the encode cases with at least 5 ids that starts so."""
    wanted = expected["truncation_max_length_5"]
    text = next(
        case["text"] for case in expected["encode_cases"] if case["ids"][:5] == wanted and len(case["ids"]) > 5
    )
    assert tokenizer(text, truncation=True, max_length=5)["input_ids"] == wanted


def random_strings(count, seed):
    """Chinese, emoji, combining marks, control characters, runs of spaces, digits, code, reserved pieces."""
    draw = random.Random(seed)
    alphabets = [
        string.ascii_letters,
        string.digits,
        string.punctuation,
        " ",
        "  \t\n\r\u3000\u00a0\u200b",
        "".join(chr(c) for c in range(0x4E00, 0x4E00 + 600)),
        "".join(chr(c) for c in range(0x4E00, 0x9FA6, 37)),
        "".join(chr(c) for c in range(0x1F600, 0x1F640)) + "👩‍💻🇨🇳",
        "\u0301\u0308éüñøßЖшאبहि한국ไทย",
        "".join(chr(c) for c in range(1, 32)) + "\x7f\x80\u2028",
        "．，。！？：；“”‘’（）《》１２３ＡＢＣ㎏①",
        "▁",
    ]
    words = [f"<reserved_{n}>" for n in (0, 1, 89, 102, 103, 106, 107)]
    words += ["the", " of", "你好", "我们", "1234567", "def f():\n    return", "https://", "<pad>", "</S>", "<s", "s>"]
    for _ in range(count):
        parts = []
        for _ in range(draw.randint(1, 8)):
            if draw.random() < 0.25:
                parts.append(draw.choice(words))
            else:
                alphabet = draw.choice(alphabets)
                parts.append("".join(draw.choice(alphabet) for _ in range(draw.randint(1, 12))))
        yield "".join(parts)


def test_equals_sentencepiece_on_random_text(folder, tokenizer):
    sentencepiece = pytest.importorskip(
        "sentencepiece", reason="needs the library sentencepiece: pip install sentencepiece"
    )
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    texts = [text for text in random_strings(6000, seed=0) if not any(token in text for token in SPECIAL.values())]
    assert len(texts) > 5500
    assert any(unicodedata.category(char) == "Cc" for text in texts for char in text)
    ours, theirs = tokenizer(texts, add_special_tokens=False)["input_ids"], model.encode(texts)
    wrong = [text for text, a, b in zip(texts, ours, theirs, strict=True) if a != b]
    assert wrong == []
    decoded = tokenizer.batch_decode(ours, skip_special_tokens=True)
    wrong = [text for text, a, b in zip(texts, decoded, model.decode(theirs), strict=True) if a != b]
    assert wrong == []


def test_decodes_random_ids_as_sentencepiece_does(folder, tokenizer):
    sentencepiece = pytest.importorskip(
        "sentencepiece", reason="needs the library sentencepiece: pip install sentencepiece"
    )
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    draw = random.Random(0)
    batch = [[draw.randint(3, len(tokenizer) - 1) for _ in range(draw.randint(1, 20))] for _ in range(2000)]
    # Bytes that are no UTF-8 become one U+FFFD each in both.
    wrong = [ids for ids in batch if tokenizer.decode(ids, skip_special_tokens=True) != model.decode(ids)]
    assert wrong == []


def test_decode_of_a_growing_text(tokenizer):
    """Characters whose bytes are separate tokens appear one by one: a streamer decodes what there is so far."""
    text = "前😀👍后"
    ids = []
    for character in text:
        single = tokenizer.convert_tokens_to_ids(character)
        as_bytes = tokenizer.convert_tokens_to_ids([f"<0x{byte:02X}>" for byte in character.encode()])
        ids += [single] if character in "前后" else as_bytes
    assert tokenizer.unk_token_id not in ids
    decoded = [tokenizer.decode(ids[: n + 1]) for n in range(len(ids))]
    assert decoded[-1] == text
    assert any(prefix.endswith("\ufffd") for prefix in decoded)
    for prefix in decoded:
        assert text.startswith(prefix.rstrip("\ufffd"))


def test_special_token_text_becomes_special_ids(tokenizer):
    assert tokenizer.encode("b<s>x")[1] == 1
    assert tokenizer.encode("<s></s><unk>") == [1, 2, 0]


def test_reserved_pieces_are_ordinary(tokenizer):
    piece = tokenizer.convert_ids_to_tokens(195)
    assert piece.startswith("<reserved_")
    assert tokenizer.encode(f"a{piece}b").count(195) == 1
    assert tokenizer.decode([195, 196], skip_special_tokens=True) == piece + tokenizer.convert_ids_to_tokens(196)
    assert 195 not in tokenizer.all_special_ids


def test_save_and_reload(folder, tokenizer, expected, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.model").read_bytes() == (folder / "tokenizer.model").read_bytes()
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert "auto_map" not in config
    assert config["tokenizer_class"] == "BaichuanTokenizer"
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert type(again) is baichuan_hf.BaichuanTokenizer
    assert again.chat_template == tokenizer.chat_template
    texts = [case["text"] for case in expected["encode_cases"]]
    assert again(texts)["input_ids"] == [case["ids"] for case in expected["encode_cases"]]
    for case in expected["decode_cases"]:
        assert again.decode(case["ids"], skip_special_tokens=True) == case["decoded_skip_special_tokens"]
    assert again.all_special_ids == tokenizer.all_special_ids

    # What is saved again from there, without the first folder, is still complete.
    again.save_pretrained(tmp_path / "twice")
    assert (tmp_path / "twice" / "tokenizer.model").read_bytes() == (folder / "tokenizer.model").read_bytes()


@pytest.mark.parametrize("bos", [False, True], ids=["no-bos", "bos"])
@pytest.mark.parametrize("eos", [False, True], ids=["no-eos", "eos"])
def test_bos_and_eos_are_kept(copy, tmp_path, bos, eos):
    """Also for tools that read tokenizer_config.json, such as llama.cpp's converter, and when saved a second time."""
    tokenizer = AutoTokenizer.from_pretrained(copy, add_bos_token=bos, add_eos_token=eos)
    ids = [1] * bos + tokenizer.encode("你好", add_special_tokens=False) + [2] * eos
    for folder in (tmp_path / "first", tmp_path / "second"):
        tokenizer.save_pretrained(folder)
        config = json.loads((folder / "tokenizer_config.json").read_text())
        assert (config["add_bos_token"], config["add_eos_token"]) == (bos, eos)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert tokenizer.encode("你好") == ids
    (folder / "tokenizer.json").unlink()
    assert AutoTokenizer.from_pretrained(folder).encode("你好") == ids


def test_added_tokens_are_kept(copy, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(copy)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|image|>"]})
    tokenizer.add_tokens(["新词语"])
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    ids = again.encode("a<|image|>b新词语c")
    assert ids == tokenizer.encode("a<|image|>b新词语c")
    assert {5000, 5001} < set(ids)
    assert again.decode(ids, skip_special_tokens=True) == "ab新词语c"


def test_pickle(tokenizer):
    """What `datasets` does to hand a tokenizer to its processes."""
    again = pickle.loads(pickle.dumps(tokenizer))
    ids = [*tokenizer.encode("你好 world"), 195]
    assert again.encode("你好 world") == tokenizer.encode("你好 world")
    assert again.decode(ids) == tokenizer.decode(ids)


def test_save_in_place(copy):
    before = (copy / "tokenizer.model").read_bytes()
    AutoTokenizer.from_pretrained(copy).save_pretrained(copy)
    assert (copy / "tokenizer.model").read_bytes() == before


def test_tokenizer_json_only(folder, tokenizer, expected, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.model").unlink()
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert type(again) is baichuan_hf.BaichuanTokenizer
    for case in expected["encode_cases"]:
        assert again.encode(case["text"]) == case["ids"]
        assert again.decode(case["ids"], skip_special_tokens=True) == case["decoded_skip_special_tokens"]
    assert again.chat_template == tokenizer.chat_template


@pytest.mark.parametrize("loader", ["class", "auto-with-config"])
def test_bare_tokenizer_model(surrogate, tmp_path, loader):
    """A folder with only tokenizer.model; AutoTokenizer needs the model's config.json to know the class."""
    shutil.copyfile(surrogate / "tokenizer.model", tmp_path / "tokenizer.model")
    if loader == "class":
        tokenizer = baichuan_hf.BaichuanTokenizer.from_pretrained(tmp_path)
    else:
        shutil.copyfile(load_golden("baichuan-7b").folder / "config.json", tmp_path / "config.json")
        tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert type(tokenizer) is baichuan_hf.BaichuanTokenizer
    for case in json.loads((surrogate / "tokenizer_expected.json").read_text())["encode_cases"]:
        assert tokenizer.encode(case["text"]) == case["ids"]
    ids = (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert ids == (0, 1, 2, 0)


@pytest.mark.parametrize("trust", [None, False, True], ids=["default", "no-trust", "trust"])
@pytest.mark.parametrize("with_config", [False, True], ids=["tokenizer-only", "with-config"])
def test_remote_code_in_the_folder_never_runs(copy, tmp_path, trust, with_config):
    marker = tmp_path / "executed"
    code = f"import pathlib; pathlib.Path({str(marker)!r}).touch()\nfrom transformers import PreTrainedTokenizer\n"
    code += "class BaichuanTokenizer(PreTrainedTokenizer): pass\n"
    (copy / "tokenization_baichuan.py").write_text(code)
    (copy / "configuration_baichuan.py").write_text(code)
    assert "auto_map" in json.loads((copy / "tokenizer_config.json").read_text())
    if with_config:
        shutil.copyfile(load_golden("baichuan-7b").folder / "config.json", copy / "config.json")
    tokenizer = AutoTokenizer.from_pretrained(copy, trust_remote_code=trust)
    assert type(tokenizer) is baichuan_hf.BaichuanTokenizer
    assert not marker.exists()
    tokenizer.save_pretrained(tmp_path / "saved")
    assert "auto_map" not in (tmp_path / "saved" / "tokenizer_config.json").read_text()


def test_git_lfs_pointer(copy):
    (copy / "tokenizer.model").write_text(
        "version https://git-lfs.github.com/spec/v1\n"
        "oid sha256:79452955be6b419a65984273a9f08af86042e1c2a75ee3ba989cbf620a133cc2\nsize 2001107\n"
    )
    with pytest.raises(OSError, match=r"tokenizer\.model") as error:
        AutoTokenizer.from_pretrained(copy)
    assert "Git LFS" in str(error.value)
    assert "lfs pull" in str(error.value)


@pytest.mark.parametrize("keep", [0, 1, 100, 1000, 40_000, -7], ids=lambda n: f"bytes-{n}")
def test_truncated_model(copy, keep):
    path = copy / "tokenizer.model"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises((OSError, ValueError), match=r"tokenizer\.model"):
        AutoTokenizer.from_pretrained(copy)


def test_a_file_that_is_no_model(copy):
    (copy / "tokenizer.model").write_bytes(b"<html>404: not found</html>" * 40)
    with pytest.raises((OSError, ValueError), match=r"tokenizer\.model"):
        AutoTokenizer.from_pretrained(copy)


def test_folder_without_tokenizer(tmp_path):
    shutil.copyfile(load_golden("baichuan-7b").folder / "config.json", tmp_path / "config.json")
    with pytest.raises(OSError, match=r"neither tokenizer\.model nor tokenizer\.json") as error:
        AutoTokenizer.from_pretrained(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_offsets_point_into_the_text(tokenizer):
    """Question answering and token classification find characters by them."""
    text = "我爱北京。Hello world, 1234 再见"
    encoded = tokenizer(text, return_offsets_mapping=True)
    pieces = [text[start:end] for start, end in encoded["offset_mapping"]]
    assert "".join(pieces) == text


def test_a_damaged_file_is_named(copy):
    AutoTokenizer.from_pretrained(copy).save_pretrained(copy)
    (copy / "tokenizer.json").write_text('{"version": ')
    for loader in (AutoTokenizer, baichuan_hf.BaichuanTokenizer):
        with pytest.raises(ValueError, match=r"tokenizer\.json is damaged: .*Download or copy it again"):
            loader.from_pretrained(copy)
