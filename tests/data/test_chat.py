"""Prompts of both generations against those of the original prompt builders (chat.json of the golden data)."""

import functools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.exceptions import TemplateError
from transformers import AutoTokenizer

from baichuan_hf import build_chat_input, bundled_checkpoint
from baichuan_hf.model.chat_templates import TEMPLATES
from tests.helpers import golden_folder
from tests.helpers.golden import load_golden


USER, ASSISTANT, EOS = 195, 196, 2
GENERATIONS = {"baichuan-13b": 1, "baichuan2-7b": 2, "baichuan2-13b": 2}
# The room of the untruncated cases; all their prompts are shorter.
WHOLE = 4096


@functools.cache
def load_tokenizer(name):
    folder = bundled_checkpoint(name) if name == "tiny" else golden_folder(f"tokenizers/{name}")
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(params=["baichuan-surrogate", "tiny", "baichuan2"])
def chat_tokenizer(request):
    """One tokenizer of each generation that every clone has, and the real one of the second."""
    return load_tokenizer(request.param)


@pytest.fixture(params=GENERATIONS)
def chat(request):
    folder = load_golden(request.param).folder
    if not (folder / "chat.json").exists():
        pytest.skip("these prompts need the real Baichuan2 tokenizer, which may not be copied into the repository")
    content = json.loads((folder / "chat.json").read_text(encoding="utf-8"))
    content["generation"] = GENERATIONS[request.param]
    return content


@pytest.fixture
def tokenizer(chat):
    return load_tokenizer(chat["tokenizer"])


def room(chat, case):
    return {
        "model_max_length": case["model_max_length"],
        "max_new_tokens": case["max_new_tokens"] or chat["generation_config_max_new_tokens"],
    }


def test_marks_of_the_turns(chat, tokenizer):
    assert (chat["user_token_id"], chat["assistant_token_id"], chat["eos_token_id"]) == (USER, ASSISTANT, EOS)
    pieces = {1: ["<reserved_102>", "<reserved_103>"], 2: ["<reserved_106>", "<reserved_107>"]}
    assert tokenizer.convert_ids_to_tokens([USER, ASSISTANT]) == pieces[chat["generation"]]


def test_build_chat_input(chat, tokenizer):
    """Every case: single and many turns, system texts, cut histories, a text longer than the room, special tokens."""
    wrong = []
    for case in chat["cases"]:
        if case["error"] is None and build_chat_input(tokenizer, case["messages"], **room(chat, case)) != case["ids"]:
            wrong.append((case["name"], room(chat, case)))
    assert wrong == []
    assert sum(case["error"] is None for case in chat["cases"]) > 30


def test_build_chat_input_refuses_what_the_original_refuses(chat, tokenizer):
    cases = [case for case in chat["cases"] if case["error"]]
    assert cases
    for case in cases:
        with pytest.raises(ValueError, match="[Rr]ole|[Ss]ystem"):
            build_chat_input(tokenizer, case["messages"], **room(chat, case))


def test_chat_template(chat, tokenizer):
    cases = [case for case in chat["cases"] if case["error"] is None and case["model_max_length"] == WHOLE]
    assert len(cases) >= 10
    for case in cases:
        prompt = tokenizer.apply_chat_template(case["messages"], add_generation_prompt=True, return_dict=True)
        assert prompt["input_ids"] == case["ids"], case["name"]


def test_chat_template_refuses_what_the_original_refuses(chat, tokenizer):
    cases = [case for case in chat["cases"] if case["error"] and case["model_max_length"] == WHOLE]
    assert cases
    for case in cases:
        with pytest.raises((TemplateError, ValueError)):
            tokenizer.apply_chat_template(case["messages"], add_generation_prompt=True)


def test_chat_template_without_generation_prompt(chat_tokenizer):
    messages = [{"role": "user", "content": "你好"}]
    ids = chat_tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
    assert ids == [USER, *chat_tokenizer.encode("你好")]


def test_generation_marks(chat_tokenizer):
    """`assistant_masks` holds what the assistant says and, in the first generation, the </s> that ends its turn."""
    messages = [
        {"role": "user", "content": "你好，请介绍一下你自己。"},
        {"role": "assistant", "content": "我是一个大型语言模型。"},
        {"role": "user", "content": "Hello, world 123"},
        {"role": "assistant", "content": "Goodbye!\n再见"},
    ]
    first_generation = chat_tokenizer.convert_ids_to_tokens(USER) == "<reserved_102>"
    ids, mask = [], []
    for message in messages:
        tokens = chat_tokenizer.encode(message["content"])
        said = message["role"] == "assistant"
        end = [EOS] if said and first_generation else []
        ids += [ASSISTANT if said else USER, *tokens, *end]
        mask += [0, *[int(said)] * len(tokens + end)]
    encoded = chat_tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    assert encoded["input_ids"] == ids
    assert encoded["assistant_masks"] == mask


def test_chat_template_in_a_left_padded_batch(chat_tokenizer):
    conversations = [
        [{"role": "user", "content": "你好"}],
        [{"role": "user", "content": "Tell me a longer story, please."}],
    ]
    batch = chat_tokenizer.apply_chat_template(
        conversations,
        add_generation_prompt=True,
        padding=True,
        return_dict=True,
        tokenizer_kwargs={"padding_side": "left"},
    )
    for row, conversation in enumerate(conversations):
        alone = chat_tokenizer.apply_chat_template(conversation, add_generation_prompt=True, return_dict=True)[
            "input_ids"
        ]
        length = sum(batch["attention_mask"][row])
        assert batch["input_ids"][row][-length:] == alone
        assert not any(batch["attention_mask"][row][:-length])


def test_chat_template_is_saved(chat_tokenizer, tmp_path):
    chat_tokenizer.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == chat_tokenizer.chat_template


def test_template_of_the_folder_wins(tmp_path):
    tokenizer = load_tokenizer("baichuan-surrogate")
    tokenizer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": "mine"}))
    for file in (tmp_path / "chat_template.jinja", tmp_path / "tokenizer.json"):
        file.unlink(missing_ok=True)
    assert AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(say("a"), tokenize=False) == "mine"


# The second generation by the words of the README, with the tokenizer that every clone has.


def second(messages, **kwargs):
    return build_chat_input(load_tokenizer("baichuan-surrogate"), messages, generation=2, **kwargs)


def encode(text):
    return load_tokenizer("baichuan-surrogate").encode(text)


def say(*contents):
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]


def test_second_generation_has_no_end_of_turn():
    assert second(say("a", "b", "c")) == [USER, *encode("a"), ASSISTANT, *encode("b"), USER, *encode("c"), ASSISTANT]


def test_second_generation_leaves_an_assistants_last_message_open():
    assert second(say("a", "b")) == [USER, *encode("a"), ASSISTANT, *encode("b")]


def test_second_generation_puts_the_system_text_first_without_a_mark():
    system = {"role": "system", "content": "短"}
    assert second([system, *say("a")]) == [*encode("短"), USER, *encode("a"), ASSISTANT]
    with pytest.raises(ValueError, match="first"):
        second([*say("a"), system])


@pytest.mark.parametrize("generation", [1, 2])
def test_whole_rounds_are_cut(generation):
    """A round is a user's message and the answer. The last always stays, older ones while they fit."""
    messages = say(*["问题" * 10, "回答" * 10] * 4, "最后")
    tokenizer = load_tokenizer("baichuan-surrogate")
    whole = build_chat_input(tokenizer, messages, generation=generation)
    cut = build_chat_input(tokenizer, messages, generation=generation, model_max_length=80, max_new_tokens=16)
    assert len(cut) < len(whole)
    assert cut == whole[-len(cut) :]
    assert cut[0] == USER
    assert cut[-len(encode("最后")) - 2 :] == [USER, *encode("最后"), ASSISTANT]


MESSAGES = st.lists(
    st.tuples(st.sampled_from(["user", "assistant"]), st.text(st.sampled_from("你好 abc1\n<>{}"), max_size=6)),
    min_size=1,
    max_size=5,
)


@pytest.mark.parametrize("generation", [1, 2])
@settings(deadline=None, max_examples=50)
@given(MESSAGES, st.one_of(st.none(), st.just("系统")))
def test_template_equals_builder(generation, messages, system):
    """Whatever the conversation; the templates' marks are replaced by the pieces of the tokenizer at hand."""
    tokenizer = load_tokenizer("baichuan-surrogate")
    user, assistant = tokenizer.convert_ids_to_tokens([USER, ASSISTANT])
    template = TEMPLATES[generation].replace("ASSISTANT_TOKEN", assistant).replace("USER_TOKEN", user)
    conversation = [{"role": role, "content": text} for role, text in messages]
    if system is not None and generation == 2:
        conversation.insert(0, {"role": "system", "content": system})
    ids = tokenizer.apply_chat_template(
        conversation, chat_template=template, add_generation_prompt=True, return_dict=True
    )["input_ids"]
    assert ids == build_chat_input(tokenizer, conversation, generation=generation)


def test_unknown_vocabulary_asks_for_the_generation(tmp_path):
    class Other:
        def convert_ids_to_tokens(self, token_id):
            return "hello"

    with pytest.raises(ValueError, match="generation"):
        build_chat_input(Other(), say("a"))
    with pytest.raises(ValueError, match="3"):
        build_chat_input(load_tokenizer("baichuan-surrogate"), say("a"), generation=3)
