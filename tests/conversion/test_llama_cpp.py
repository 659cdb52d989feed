"""GGUF files read by llama.cpp itself, through llama-cpp-python.

That builds from source for some minutes, so it is in no extra of ours, and these tests are skipped without it:
`CMAKE_ARGS=-DGGML_NATIVE=OFF pip install llama-cpp-python`. (The variable: llama.cpp crashes on virtual machines whose
processor names AMX instructions that the machine does not let through.)
"""

import gc
import itertools
import json
import shutil

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from baichuan_hf import BaichuanConfig, BaichuanForCausalLM, bundled_checkpoint
from baichuan_hf.conversion.lora_to_gguf import convert_adapter_to_gguf
from baichuan_hf.conversion.to_gguf import convert_to_gguf
from tests.helpers import REPOSITORY, golden_folder, tiny_config
from tests.helpers.checkpoint import save_checkpoint
from tests.helpers.golden import GOLDEN_FAMILIES, TOLERANCE, load_golden, logits_difference


pytest.importorskip("gguf", reason="pip install 'baichuan-hf[gguf]'")
llama_cpp = pytest.importorskip("llama_cpp", reason="pip install llama-cpp-python")
pytestmark = pytest.mark.slow

VOCABULARY = 5000  # of the surrogate tokenizer
# Per type of the file: the largest difference of a logit, for logits of up to 25.
KINDS = {
    "f32": ({"dtype": torch.float32}, TOLERANCE),
    "f16": ({"dtype": torch.float16}, 0.1),
    "q8_0": ({"quantize": "q8_0"}, 1.0),
}


class Reader:
    """A GGUF file in llama.cpp, on one core, with a cache in float32."""

    def __init__(self, file, **options):
        full = llama_cpp.GGML_TYPE_F32
        options = {"n_ctx": 256, "logits_all": True, "type_k": full, "type_v": full} | options
        self.llama = llama_cpp.Llama(str(file), n_threads=1, n_threads_batch=1, verbose=False, **options)

    def logits(self, ids):
        """(T, vocab_size)"""
        self.llama.reset()
        self.llama.eval([int(token) for token in ids])
        return torch.from_numpy(np.array(self.llama.scores[: len(ids)]))

    def greedy(self, ids, count, words):
        """`count` tokens of the first `words`, one at a time with the cache."""
        self.llama.reset()
        self.llama.eval([int(token) for token in ids])
        tokens = []
        for _ in range(count):
            tokens.append(int(self.llama.scores[self.llama.n_tokens - 1][:words].argmax()))
            self.llama.eval(tokens[-1:])
        return tokens


@pytest.fixture
def read():
    """Opens files, and closes them before Python takes llama_cpp apart, which then prints errors."""
    readers = []
    yield lambda file, **options: readers.append(Reader(file, **options)) or readers[-1]
    for reader in readers:
        reader.llama.close()
    gc.collect()


def save_golden(folder, name, num_hidden_layers=None):
    """The original's files with the surrogate tokenizer; made deeper by layers that add nothing to their input."""
    golden = load_golden(name)
    if num_hidden_layers is None:
        shutil.copytree(golden.checkpoint, folder)
        settings = golden.json("config.json") | golden.config_overrides
        (folder / "config.json").chmod(0o644)
        (folder / "config.json").write_text(json.dumps(settings))
    else:
        shallow = golden.load()
        deeper = shallow.config.to_dict() | {"num_hidden_layers": num_hidden_layers, "layer_types": None}
        model = BaichuanForCausalLM(BaichuanConfig(**deeper))
        for parameter in model.parameters():
            torch.nn.init.zeros_(parameter)
        assert not model.load_state_dict(shallow.state_dict(), strict=False).unexpected_keys
        model.save_pretrained(folder)
    for path in golden_folder("tokenizers/baichuan-surrogate").iterdir():
        shutil.copyfile(path, folder / path.name)
    return folder


@pytest.mark.parametrize("kind", ["f32", "f16"])
@pytest.mark.parametrize("original_depth", [True, False], ids=["baichuan", "other"])
@pytest.mark.parametrize("name", GOLDEN_FAMILIES)
def test_computes_what_the_original_code_does(name, original_depth, kind, read, tmp_path):
    """As llama.cpp's `baichuan`, which goes by the number of layers, and as what stands in for it."""
    golden, (options, tolerance) = load_golden(name), KINDS[kind]
    layers = (40 if golden.alibi else 32) if original_depth else None
    folder = save_golden(tmp_path / "src", name, layers)
    done = convert_to_gguf(folder, tmp_path / "model.gguf", vocab_size=VOCABULARY, **options)
    assert done.architecture == ("baichuan" if original_depth else "refact" if golden.alibi else "llama")
    reader, expected = read(done.file), golden.tensors
    found = torch.stack([reader.logits(ids) for ids in expected["input_ids"]])
    difference = logits_difference(found, expected["logits"])
    prompts = sorted(key for key in expected if key.startswith("generate.prompt."))
    tokens = [expected[key.replace("prompt", "tokens")].tolist() for key in prompts]
    words = golden.facts["sizes"]["vocab"]
    written = [reader.greedy(expected[key], len(row), words) for key, row in zip(prompts, tokens, strict=True)]
    equal = sum(
        ours == theirs
        for row, other in zip(written, tokens, strict=True)
        for ours, theirs in zip(row, other, strict=True)
    )
    largest = expected["logits"].abs().max()
    print(
        f"{name} {done.architecture} {kind}: {difference:.2g} of {largest:.3g}, greedy {equal}/{sum(map(len, tokens))}"
    )
    assert difference < tolerance
    if kind == "f32":  # random weights have near ties, which rounding decides
        assert written == tokens


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["tiny", "tiny-alibi"])
def test_trained_checkpoints(name, kind, read, tmp_path):
    options, tolerance = KINDS[kind]
    folder = bundled_checkpoint(name)
    texts = json.loads((REPOSITORY / "baichuan_hf/training/tiny/held_out.json").read_text(encoding="utf-8"))
    text = "\n".join(itertools.chain.from_iterable(zip(*texts.values(), strict=False)))
    ids = torch.tensor(AutoTokenizer.from_pretrained(folder)(text).input_ids[:900])
    reader = read(convert_to_gguf(folder, tmp_path / "model.gguf", **options).file, n_ctx=1024)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        expected = model(ids[None]).logits[0]
    found = reader.logits(ids)
    losses = [torch.nn.functional.cross_entropy(logits[:-1], ids[1:]).item() for logits in (expected, found)]
    same = (found.argmax(-1) == expected.argmax(-1)).float().mean().item()
    difference = (found - expected).abs().max().item()
    print(f"{name} {kind}: {difference:.2g} of {expected.abs().max():.3g}, argmax {same:.3f}, losses {losses}")
    assert same > 0.95
    assert difference < tolerance
    assert abs(losses[0] - losses[1]) < 0.02
    settings = {"max_new_tokens": 40, "do_sample": False, "repetition_penalty": 1.0, "eos_token_id": None}
    prompt = ids[:16]
    written = model.generate(prompt[None], attention_mask=torch.ones_like(prompt[None]), **settings)[0, 16:].tolist()
    continued = reader.greedy(prompt, 40, len(expected[0]))
    print(sum(ours == theirs for ours, theirs in zip(written, continued, strict=True)), "of 40 greedy tokens")
    if kind != "q8_0":
        assert continued == written


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = YARN | {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ALIBI = {"position_embedding_type": "alibi"}
VARIANTS = {
    "grouped": {"num_key_value_heads": 2},
    "grouped-baichuan": {"num_key_value_heads": 2, "num_hidden_layers": 32},
    "grouped-alibi": {"num_key_value_heads": 2, "num_hidden_layers": 40} | ALIBI,
    "heads-no-power-of-two": {"num_attention_heads": 6, "hidden_size": 96} | ALIBI,
    "biases": {"attention_bias": True, "mlp_bias": True},
    "wide-heads": {"head_dim": 24},
    "wide-heads-alibi": {"head_dim": 24} | ALIBI,
    "tied": {"tie_word_embeddings": True},
    "tied-normhead": {"tie_word_embeddings": True, "normalize_lm_head": True, "num_hidden_layers": 40} | ALIBI,
    "theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}, "num_hidden_layers": 32},
    "linear": {"rope_parameters": {"rope_type": "linear", "factor": 3.0}},
    "yarn": {"rope_parameters": YARN, "num_hidden_layers": 32},
    "llama3": {"rope_parameters": LLAMA3},
}


@pytest.mark.parametrize("overrides", VARIANTS.values(), ids=VARIANTS)
def test_variants(overrides, read, tmp_path):
    folder = save_checkpoint(tmp_path / "src")
    torch.manual_seed(0)
    model = BaichuanForCausalLM(tiny_config(vocab_size=VOCABULARY, initializer_range=0.2, **overrides)).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    model.save_pretrained(folder)
    ids = torch.randint(3, VOCABULARY, (120,))
    with torch.no_grad():
        expected = model(ids[None]).logits[0]
    found = read(convert_to_gguf(folder, tmp_path / "model.gguf").file).logits(ids)
    torch.testing.assert_close(found, expected, atol=1e-4 * expected.abs().max().item(), rtol=0)


@pytest.mark.parametrize("kind", ["baichuan-surrogate", "baichuan2"])
def test_tokenizer_and_chat(kind, read, tmp_path):
    source = golden_folder(f"tokenizers/{kind}")
    tokenizer = AutoTokenizer.from_pretrained(source)
    folder = save_checkpoint(tmp_path / "src", vocab_size=len(tokenizer))
    tokenizer.save_pretrained(folder)
    llama = read(convert_to_gguf(folder, tmp_path / "model.gguf").file).llama
    cases = json.loads((source / "tokenizer_expected.json").read_text(encoding="utf-8"))["encode_cases"]
    expected = {case["text"]: case["ids"] for case in cases}
    for path in (
        REPOSITORY / "README.md",
        REPOSITORY / "README.zh-CN.md",
        *(REPOSITORY / "baichuan_hf").rglob("*.py"),
    ):
        text = path.read_text(encoding="utf-8")
        expected[text] = tokenizer(text).input_ids
    for text, ids in expected.items():
        assert llama.tokenize(text.encode(), add_bos=False, special=True) == ids, text[:80]
    print(f"{kind}: {len(expected)} texts, {sum(map(len, expected.values()))} tokens")

    seen = []
    evaluate = llama.eval
    llama.eval = lambda tokens: seen.extend(tokens) or evaluate(tokens)
    messages = [{"role": "user", "content": "你好 "}, {"role": "assistant", "content": " Hello"}]
    messages.append({"role": "user", "content": "and?\n"})
    llama.create_chat_completion(messages, max_tokens=1)
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True).input_ids
    assert seen[: len(prompt)] == prompt


def test_spaces_that_are_tokens_by_themselves(read, tmp_path):
    """Pieces of spaces that the tokenizer's trainer was given, and did not find."""
    model_files = pytest.importorskip("sentencepiece.sentencepiece_model_pb2")
    folder = save_checkpoint(tmp_path / "src")
    model = model_files.ModelProto.FromString((folder / "tokenizer.model").read_bytes())
    user_defined = {"▁▁", "▁▁▁▁▁▁▁▁"}
    for piece in model.pieces:
        if piece.piece in user_defined:
            piece.type = model_files.ModelProto.SentencePiece.USER_DEFINED
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    llama = read(convert_to_gguf(folder, tmp_path / "model.gguf").file).llama
    for spaces in range(20):
        text = f"if{' ' * spaces}你好"
        assert llama.tokenize(text.encode(), add_bos=False, special=True) == tokenizer(text).input_ids
        assert llama.detokenize(tokenizer(text).input_ids).decode() == text


def save_adapter(folder, base, **options):
    torch.manual_seed(1)
    settings = {"r": 4, "target_modules": "all-linear", "init_lora_weights": False} | options
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted = get_peft_model(model, LoraConfig(**settings)).eval()
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data *= 0.1  # so that the logits stay of the size that the tolerance is for
    adapted.save_pretrained(folder)
    return adapted


@torch.no_grad()
def check_adapter(reader, adapted, ids, count):
    """Logits and greedy tokens of model and adapter in llama.cpp, and that the adapter matters."""
    ids = torch.as_tensor(ids)[None]
    expected = adapted(input_ids=ids).logits[0]
    found = reader.logits(ids[0])[:, : expected.shape[-1]]
    assert logits_difference(found, expected) < TOLERANCE
    with adapted.disable_adapter():
        assert logits_difference(adapted(input_ids=ids).logits[0], expected) > 0.1
    merged = adapted.merge_and_unload()
    settings = {"do_sample": False, "eos_token_id": None, "repetition_penalty": 1.0, "max_new_tokens": count}
    written = merged.generate(ids, attention_mask=torch.ones_like(ids), **settings)[0, ids.shape[1] :]
    assert reader.greedy(ids[0], count, expected.shape[-1]) == written.tolist()


@pytest.mark.parametrize("original_depth", [True, False], ids=["baichuan", "other"])
@pytest.mark.parametrize("name", GOLDEN_FAMILIES)
def test_adapter_file_upon_the_file_of_its_model(name, original_depth, read, tmp_path):
    """Of two ranks, by rsLoRA in half of the cases, on every linear layer."""
    golden = load_golden(name)
    folder = save_golden(tmp_path / "src", name, (40 if golden.alibi else 32) if original_depth else None)
    options = {"rank_pattern": {"o_proj": 2}, "lora_alpha": 6, "use_rslora": original_depth}
    adapted = save_adapter(tmp_path / "adapter", folder, **options)
    model = convert_to_gguf(folder, tmp_path / "model.gguf", vocab_size=VOCABULARY, dtype=torch.float32)
    done = convert_adapter_to_gguf(tmp_path / "adapter", tmp_path, base=folder)
    assert done.file == tmp_path / "adapter.gguf"
    assert (done.architecture, done.rank) == (model.architecture, 4)
    check_adapter(read(model.file, lora_path=str(done.file)), adapted, golden.tensors["input_ids"][0], 12)


def test_adapter_file_with_the_norm_head(read, tmp_path):
    """Which can be merged into no weight of Baichuan's own, but stands beside the folded head here."""
    folder = shutil.copytree(bundled_checkpoint("tiny"), tmp_path / "src")
    adapted = save_adapter(tmp_path / "adapter", folder, target_modules=["W_pack", "lm_head"])
    model = convert_to_gguf(folder, tmp_path / "model.gguf", dtype=torch.float32)
    done = convert_adapter_to_gguf(tmp_path / "adapter", tmp_path / "adapter.gguf")
    reader = read(model.file, lora_path=str(done.file))
    ids = AutoTokenizer.from_pretrained(folder)("春天 Hello, world").input_ids
    with torch.no_grad():
        expected = adapted(input_ids=torch.tensor([ids])).logits[0]
    assert logits_difference(reader.logits(ids), expected) < 2e-4
