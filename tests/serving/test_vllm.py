"""Baichuan in vLLM on a CPU: the same tokens as transformers gives, and as the original code gave.

vLLM is in no environment of ours. How to get it for a CPU is in docs/serving.md; then
`python -m pytest -m slow -s tests/serving`.
"""

import json
import os
import urllib.request

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from baichuan_hf import (
    BaichuanForCausalLM,
    BaichuanForSequenceClassification,
    BaichuanForTokenClassification,
    bundled_checkpoint,
)
from tests.helpers import FAMILIES, tiny_config
from tests.helpers.checkpoint import save_checkpoint
from tests.helpers.golden import GOLDEN_FAMILIES, TOLERANCE, load_golden, logits_difference


# Before vLLM is imported, which reads them once: in this process, where errors are seen and starts are quick.
os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
vllm = pytest.importorskip("vllm", reason="pip install 'baichuan-hf[vllm]'")
pytestmark = pytest.mark.slow

HEAD_DIM = 32  # the least that vLLM's attention has on a CPU


@pytest.fixture
def serve(reproducible):
    """Starts engines that compute in float32, and takes them down."""
    from vllm.distributed import cleanup_dist_env_and_memory

    # Of which vLLM's attention on a CPU has none that is deterministic by torch's list.
    torch.use_deterministic_algorithms(False)
    engines = []

    def start(folder, **options):
        defaults = {"dtype": "float32", "enforce_eager": True, "disable_log_stats": True}
        engines.append(vllm.LLM(str(folder), **(defaults | options)))
        return engines[-1]

    yield start
    for engine in engines:
        engine.llm_engine.engine_core.shutdown()
    engines.clear()
    cleanup_dist_env_and_memory()


def greedy(engine, prompts, count, **options):
    """`count` tokens after each of `prompts` (token ids), which run as one batch."""
    settings = vllm.SamplingParams(temperature=0, max_tokens=count, ignore_eos=True, detokenize=False)
    requests = [{"prompt_token_ids": list(map(int, ids))} for ids in prompts]
    answers = engine.generate(requests, settings, use_tqdm=False, **options)
    return [list(answer.outputs[0].token_ids) for answer in answers]


def logits_of(engine, ids):
    """(T - 1, vocab_size): those after each token but the last; the engine needs `ALL_LOGITS`."""
    settings = vllm.SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=-1, detokenize=False)
    request = {"prompt_token_ids": list(map(int, ids))}
    (answer,) = engine.generate([request], settings, use_tqdm=False)
    rows = [[row[word].logprob for word in range(len(row))] for row in answer.prompt_logprobs[1:]]
    return torch.tensor(rows)


ALL_LOGITS = {"max_logprobs": -1, "logprobs_mode": "raw_logits"}


def in_transformers(model, prompts, count):
    settings = {"max_new_tokens": count, "do_sample": False, "repetition_penalty": 1.0, "eos_token_id": None}
    rows = [torch.tensor(ids)[None] for ids in prompts]
    with torch.no_grad():
        return [model.generate(row, **settings)[0, row.shape[1] :].tolist() for row in rows]


def random_prompts(lengths, vocab_size=128):
    return [torch.randint(3, vocab_size, (length,)).tolist() for length in lengths]


def save_random(folder, **overrides):
    """A model whose logits differ enough for greedy tokens to mean something, as `save_pretrained` writes it."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 4 * HEAD_DIM, "initializer_range": 0.2, "max_position_embeddings": 512}
    model = BaichuanForCausalLM(tiny_config(**(sizes | overrides))).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    model.save_pretrained(folder)
    return model


def save_widened(folder, golden):
    """An original checkpoint, in its own keys and config, with heads of `HEAD_DIM` that compute exactly the same.

    The golden heads have 16 or 12 dimensions. The new ones are zero and change no product; those that are rotated sit
    where the wider head has their frequency, and queries make up for the other scale.
    """
    settings = golden.json("config.json") | golden.config_overrides | {"head_dim": HEAD_DIM}
    heads = settings["num_attention_heads"]
    narrow = settings["hidden_size"] // heads
    places = torch.arange(narrow) if golden.alibi else torch.arange(narrow) * (HEAD_DIM // narrow)
    weights = {}
    for file in sorted(golden.checkpoint.glob("pytorch_model*.bin")):
        weights |= torch.load(file)
    for name, weight in weights.items():
        if name.endswith("W_pack.weight"):
            wide = torch.zeros(3, heads, HEAD_DIM, weight.shape[1])
            wide[:, :, places] = weight.view(3, heads, narrow, -1)
            wide[0] *= (HEAD_DIM / narrow) ** 0.5
            weights[name] = wide.flatten(0, 2)
        elif name.endswith("o_proj.weight"):
            wide = torch.zeros(len(weight), heads, HEAD_DIM)
            wide[:, :, places] = weight.view(-1, heads, narrow)
            weights[name] = wide.flatten(1)
    folder.mkdir()
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize("name", GOLDEN_FAMILIES)
def test_original_folders_give_what_the_original_code_gave(name, serve, tmp_path):
    """One batch of uneven prompts, from a folder whose config.json names remote code that is not there."""
    golden = load_golden(name)
    folder = save_widened(tmp_path / "src", golden)
    assert "auto_map" in json.loads((folder / "config.json").read_text())
    engine = serve(folder, skip_tokenizer_init=True, **ALL_LOGITS)
    expected = golden.tensors
    prompts = sorted(key for key in expected if key.startswith("generate.prompt."))
    tokens = [expected[key.replace("prompt", "tokens")].tolist() for key in prompts]
    written = greedy(engine, [expected[key] for key in prompts], len(tokens[0]))
    found = torch.stack([logits_of(engine, ids) for ids in expected["input_ids"]])
    logits = expected["logits"]
    difference = logits_difference(found, logits[:, :-1])
    equal = sum(
        ours == theirs for pair in zip(written, tokens, strict=True) for ours, theirs in zip(*pair, strict=True)
    )
    print(f"\n{name}: {difference:.2g} of {logits.abs().max():.3g}, greedy {equal} of {sum(map(len, tokens))}")
    assert written == tokens
    assert difference < TOLERANCE


ALIBI = {"position_embedding_type": "alibi"}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
LLAMA3 = YARN | {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
VARIANTS = FAMILIES | {
    "gqa-alibi": {"num_key_value_heads": 2} | ALIBI,
    "heads-no-power-of-two": {"num_attention_heads": 6, "hidden_size": 6 * HEAD_DIM} | ALIBI,
    "alibi-ntk": {"alibi_scaling": {"alibi_type": "ntk", "factor": 4.0}} | ALIBI,
    "biases": {"attention_bias": True, "mlp_bias": True},
    "wide-heads": {"head_dim": 64},
    "tied": {"tie_word_embeddings": True},
    "no-positions": {"position_embedding_type": "none"},
    "window": {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]},
    "theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
    "linear": {"rope_parameters": {"rope_type": "linear", "factor": 3.0}},
    "yarn": {"rope_parameters": YARN},
    "llama3": {"rope_parameters": LLAMA3},
}


@pytest.mark.parametrize("overrides", VARIANTS.values(), ids=VARIANTS)
def test_saved_folders_give_what_transformers_gives(overrides, serve, tmp_path):
    model = save_random(tmp_path, **overrides)
    engine = serve(tmp_path, skip_tokenizer_init=True, **ALL_LOGITS)
    prompts = random_prompts([1, 7, 30, 100])
    assert greedy(engine, prompts, 24) == in_transformers(model, prompts, 24)
    with torch.no_grad():
        expected = model(torch.tensor(prompts[-1:])).logits[0, :-1]
    tolerance = 1e-4 * expected.abs().max().item()
    torch.testing.assert_close(logits_of(engine, prompts[-1]), expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("model_class", [BaichuanForSequenceClassification, BaichuanForTokenClassification])
def test_classifiers(model_class, serve, tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 4 * HEAD_DIM, "initializer_range": 0.2, "num_labels": 3}
    model = model_class(tiny_config(**sizes, **ALIBI)).eval()
    model.save_pretrained(tmp_path)
    engine = serve(tmp_path, skip_tokenizer_init=True, runner="pooling")
    task = "classify" if model_class is BaichuanForSequenceClassification else "token_classify"
    prompts = random_prompts([5, 20])
    requests = [{"prompt_token_ids": ids} for ids in prompts]
    for ids, answer in zip(prompts, engine.encode(requests, pooling_task=task, use_tqdm=False), strict=True):
        with torch.no_grad():
            expected = model(torch.tensor([ids])).logits[0].softmax(-1)
        torch.testing.assert_close(answer.outputs.data, expected)


@pytest.mark.parametrize("family", ["rope-normhead", "alibi"])
def test_long_prompts_in_chunks_and_cached_prefixes(family, serve, tmp_path):
    model = save_random(tmp_path, **FAMILIES[family])
    limits = {"max_num_batched_tokens": 64, "max_num_seqs": 4}
    engine = serve(tmp_path, skip_tokenizer_init=True, enable_prefix_caching=True, **limits)
    (long,) = random_prompts([400])
    prompts = [long, long[:333] + [5, 6, 7], long[:200]]
    expected = in_transformers(model, prompts, 24)
    assert greedy(engine, prompts[:1], 24) == expected[:1]
    settings = vllm.SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, detokenize=False)
    answers = engine.generate([{"prompt_token_ids": ids} for ids in prompts], settings, use_tqdm=False)
    print(f"\n{family}: cached", [answer.num_cached_tokens for answer in answers], "of", list(map(len, prompts)))
    assert all(answer.num_cached_tokens >= len(ids) // 2 for answer, ids in zip(answers, prompts, strict=True))
    assert [list(answer.outputs[0].token_ids) for answer in answers] == expected


def save_adapter(folder, base, seed, target_modules, **settings):
    """A random LoRA adapter as PEFT writes it; returns the model with it, and leaves `base` as it is."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base)
    model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=target_modules, **settings)).eval()
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("family", ["rope-normhead", "alibi-normhead", "gqa"])
def test_adapters(family, serve, tmp_path):
    """Two adapters and the bare model in one batch; rsLoRA scales otherwise."""
    from vllm.lora.request import LoRARequest

    base = save_random(tmp_path / "base", **FAMILIES[family])
    attention = ["q_proj", "k_proj", "v_proj"] if family == "gqa" else ["W_pack"]
    everywhere = [*attention, "o_proj", "gate_proj", "up_proj", "down_proj"]
    adapters = {"some": (attention, {}), "all": (everywhere, {"use_rslora": True})}
    prompts = random_prompts([20, 20, 20])
    expected, requests = in_transformers(base, prompts[:1], 24), [None]
    for number, (name, (modules, settings)) in enumerate(adapters.items(), start=1):
        model = save_adapter(tmp_path / name, tmp_path / "base", number, modules, **settings)
        expected += in_transformers(model, [prompts[number]], 24)
        assert expected[-1] != in_transformers(base, [prompts[number]], 24)[0]
        requests.append(LoRARequest(name, number, str(tmp_path / name)))
    # One more place than adapters: on a CPU vLLM 0.32 gives rows without adapter what is in the last place.
    engine = serve(tmp_path / "base", skip_tokenizer_init=True, enable_lora=True, max_loras=3)
    assert greedy(engine, prompts, 24, lora_request=requests) == expected


@pytest.mark.parametrize("family", ["rope-normhead", "alibi", "gqa"])
def test_tensor_parallel(family, serve, tmp_path, monkeypatch):
    """Two processes, with half of the heads and their slopes each."""
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    model = save_random(tmp_path, **FAMILIES[family])
    engine = serve(tmp_path, skip_tokenizer_init=True, tensor_parallel_size=2, distributed_executor_backend="mp")
    prompts = random_prompts([7, 30])
    assert greedy(engine, prompts, 24) == in_transformers(model, prompts, 24)


def test_adapter_of_a_normalised_head_is_refused(serve, tmp_path):
    from vllm.lora.request import LoRARequest

    save_random(tmp_path / "base", normalize_lm_head=True)
    save_adapter(tmp_path / "adapter", tmp_path / "base", 1, ["W_pack", "lm_head"])
    engine = serve(tmp_path / "base", skip_tokenizer_init=True, enable_lora=True)
    with pytest.raises(Exception, match="lm_head"):
        greedy(engine, random_prompts([5]), 4, lora_request=LoRARequest("adapter", 1, str(tmp_path / "adapter")))


@pytest.mark.parametrize("name", ["tiny", "tiny-alibi"])
def test_bundled_checkpoints_write_and_chat(name, serve):
    """Text in, text out: the tokenizer is ours, and `chat` goes by our template."""
    folder = bundled_checkpoint(name)
    engine = serve(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    settings = vllm.SamplingParams(temperature=0, max_tokens=30)
    messages = [{"role": "user", "content": "春天来了 Hello"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True).input_ids
    (answer,) = engine.chat(messages, settings, use_tqdm=False)
    assert answer.prompt_token_ids == ids
    (written,) = in_transformers(model, [ids], 30)
    assert list(answer.outputs[0].token_ids) == written[: len(answer.outputs[0].token_ids)]
    (answer,) = engine.generate(["def main("], settings, use_tqdm=False)
    assert answer.prompt_token_ids == tokenizer("def main(").input_ids


def test_what_vllm_would_compute_otherwise_is_refused(serve, tmp_path):
    save_checkpoint(tmp_path, norm_position="sandwich")
    with pytest.raises(ValueError, match="norm_position='sandwich' cannot be served by vLLM"):
        serve(tmp_path)


@pytest.mark.parametrize("method", ["int8", "int8-dynamic"])
def test_quantised_folders(method, serve, tmp_path):
    """As `baichuan-hf quantize` writes them; the head stays as it is, and is still normalised."""
    pytest.importorskip("torchao", reason="pip install 'baichuan-hf[torchao]'")
    from baichuan_hf.quantization import quantize_folder

    save_random(tmp_path / "src", normalize_lm_head=True)
    quantize_folder(tmp_path / "src", tmp_path / "quantised", method=method, device="cpu")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "quantised", dtype=torch.float32)
    engine = serve(tmp_path / "quantised", skip_tokenizer_init=True, **ALL_LOGITS)
    (prompt,) = random_prompts([60])
    with torch.no_grad():
        expected = model(torch.tensor([prompt])).logits[0, :-1]
    # Inputs are rounded too with the second, and a last digit decides to which side.
    tolerance = {"int8": 1e-4, "int8-dynamic": 0.05}[method] * expected.abs().max().item()
    torch.testing.assert_close(logits_of(engine, prompt), expected, atol=tolerance, rtol=0)


@pytest.fixture
def server(start_server):
    """Runs vLLM's server; gives a function that posts to it."""

    def start(folder, *options):
        # Of vllm-cpu 0.32 the command `vllm serve` ends in an error: it asks for the version of a package "vllm".
        address = start_server("vllm.entrypoints.openai.api_server", "--model", folder, "--enforce-eager", *options)

        def post(path, **body):
            data = json.dumps(body | {"model": body.get("model", str(folder))}).encode()
            request = urllib.request.Request(f"{address}{path}", data, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request) as answer:
                return json.load(answer)

        return post

    return start


def test_openai_server(server, tmp_path):
    """Chat by the template of the tokenizer, and an adapter by its name, with nothing said of remote code."""
    folder = bundled_checkpoint("tiny")
    adapted = save_adapter(tmp_path / "adapter", folder, 1, ["W_pack"]).float()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    post = server(folder, "--dtype", "float32", "--enable-lora", "--lora-modules", f"mine={tmp_path / 'adapter'}")
    settings = {"temperature": 0, "repetition_penalty": 1, "max_tokens": 20, "ignore_eos": True}

    messages = [{"role": "user", "content": "春天来了 Hello"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True).input_ids
    answer = post("/v1/chat/completions", messages=messages, **settings)
    assert answer["usage"]["prompt_tokens"] == len(ids)
    (expected,) = in_transformers(model, [ids], 20)
    assert answer["choices"][0]["message"]["content"] == tokenizer.decode(expected, skip_special_tokens=True)

    ids = tokenizer("春天").input_ids
    for name, reference in {str(folder): model, "mine": adapted}.items():
        answer = post("/v1/completions", prompt="春天", model=name, **settings)
        (expected,) = in_transformers(reference, [ids], 20)
        assert answer["choices"][0]["text"] == tokenizer.decode(expected, skip_special_tokens=True)
