"""Decoding strategies, caches and batches: each against plain greedy decoding, or rows against the row alone."""

import copy
import functools
from contextlib import contextmanager

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CompileConfig,
    ContinuousBatchingConfig,
    GenerationConfig,
    QuantizedCache,
    StaticCache,
    TextIteratorStreamer,
    TextStreamer,
)

import baichuan_hf
from baichuan_hf.model.decoding import NotCompiledError
from tests.helpers import golden_folder, tiny_config
from tests.helpers.decoding import partwise_traced
from tests.helpers.golden import TOLERANCE, load_golden


# RoPE and ALiBi from the golden checkpoints, whose top-1 and top-2 logits stand apart; grouped heads drawn likewise.
MODELS = {"rope": "baichuan2-7b", "alibi": "baichuan2-13b", "gqa": None}
ASSISTANTS = {"rope": "baichuan-7b", "alibi": "baichuan-13b"}
NEW_TOKENS = 12
GREEDY = {"do_sample": False, "repetition_penalty": 1.0, "max_new_tokens": NEW_TOKENS}


def random_model(attention, dtype):
    torch.manual_seed(0)
    config = tiny_config(num_key_value_heads=2, vocab_size=512, initializer_range=0.2, eos_token_id=None)
    config._attn_implementation = attention
    return baichuan_hf.BaichuanForCausalLM(config).to(dtype)


@functools.cache
def load_model(kind, attention="sdpa", dtype=torch.float32):
    """Shared: no test changes it."""
    if MODELS[kind] is None:
        return random_model(attention, dtype).eval()
    return load_golden(MODELS[kind]).load(attn_implementation=attention, dtype=dtype).eval()


@pytest.fixture(params=MODELS)
def kind(request):
    return request.param


@pytest.fixture
def model(kind):
    return load_model(kind)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


# The rows of the golden left-padded batch and two longer ones.
LENGTHS = [9, 5, 2]


def padded_batch(side):
    """Ids (3, 9) and mask, padded on `side`."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.zeros(len(LENGTHS), max(LENGTHS), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(LENGTHS):
        columns = slice(max(LENGTHS) - length, None) if side == "left" else slice(0, length)
        ids[row, columns] = torch.randint(3, 500, (length,), generator=generator)
        mask[row, columns] = 1
    return ids, mask


def prompt():
    return torch.arange(20, 31)[None]


def greedy(model, ids, **kwargs):
    return model.generate(ids, **(GREEDY | kwargs))[:, ids.shape[1] :]


@functools.cache
def greedy_alone(kind, row):
    ids, mask = padded_batch("left")
    return greedy(load_model(kind), ids[row, mask[row].bool()][None])[0].tolist()


def test_sampling_from_the_top_token_is_greedy(model):
    tokens = greedy(model, prompt(), do_sample=True, top_k=1, temperature=0.7)
    assert torch.equal(tokens, greedy(model, prompt()))


def test_sampling_follows_the_seed(model):
    def sample(seed):
        torch.manual_seed(seed)
        return greedy(model, prompt(), do_sample=True, top_k=50, top_p=0.95, temperature=2.0).tolist()

    assert sample(1) == sample(1)
    assert len({str(sample(seed)) for seed in range(4)}) > 1


def log_likelihood(model, ids, tokens):
    logits = model(torch.cat([ids, tokens], dim=1)).logits[:, ids.shape[1] - 1 : -1]
    return logits.log_softmax(-1).gather(2, tokens[..., None]).sum().item()


def test_beams_find_likelier_texts_than_greedy(model):
    best = log_likelihood(model, prompt(), greedy(model, prompt(), num_beams=4))
    assert best >= log_likelihood(model, prompt(), greedy(model, prompt())) - 1e-4


def test_beams_return_their_scores(model):
    output = model.generate(
        prompt(),
        num_beams=3,
        num_return_sequences=3,
        length_penalty=0.0,
        output_scores=True,
        return_dict_in_generate=True,
        **GREEDY,
    )
    tokens = output.sequences[:, prompt().shape[1] :]
    assert len({str(row.tolist()) for row in tokens}) == 3
    for row, score in zip(tokens, output.sequences_scores, strict=True):
        assert log_likelihood(model, prompt(), row[None]) == pytest.approx(score.item(), abs=1e-3)


@pytest.mark.parametrize("kind", ASSISTANTS, indirect=True)
def test_assisted_decoding_is_greedy(model, kind):
    assistant = load_golden(ASSISTANTS[kind]).load().eval()
    assert torch.equal(greedy(model, prompt(), assistant_model=assistant), greedy(model, prompt()))


def test_prompt_lookup_is_greedy(model):
    ids = torch.tensor([[30, 31, 32, 33, 30, 31, 32, 33, 30, 31]])
    assert torch.equal(greedy(model, ids, prompt_lookup_num_tokens=3), greedy(model, ids))


@pytest.mark.parametrize("penalty", [1.0, 1.1])
@pytest.mark.parametrize(("name", "other"), [("tiny", "tiny-alibi"), ("tiny-alibi", "tiny")])
def test_drafts_are_taken_as_far_as_they_are_right(name, other, penalty):
    """Trained models, RoPE with NormHead and ALiBi: of what is drafted, some is taken and some leaves the cache."""
    folders = {key: baichuan_hf.bundled_checkpoint(key) for key in (name, other)}
    models = {key: AutoModelForCausalLM.from_pretrained(folders[key], dtype=torch.float32) for key in folders}
    passes = []
    models[name].register_forward_hook(lambda *_: passes.append(1))
    tokenizer = AutoTokenizer.from_pretrained(folders[name])
    ids = tokenizer("春天的花开了，春天的风来了。夏天的花开了，夏天的风来了。", return_tensors="pt").input_ids

    def write(**kwargs):
        passes.clear()
        tokens = greedy(models[name], ids, max_new_tokens=40, repetition_penalty=penalty, **kwargs)
        return tokens.tolist(), len(passes)

    plain, most = write()
    assert most == 40
    for drafting, drafted in (({"prompt_lookup_num_tokens": 5}, 5), ({"assistant_model": models[other]}, 20)):
        tokens, fewer = write(**drafting)
        assert tokens == plain
        assert 40 / (drafted + 1) + 1 < fewer < most


def test_repetition_penalty(model):
    """Greedy on logits that are divided (positive) or multiplied (negative) by the penalty where the id was seen."""
    penalty, ids = 1.7, prompt()
    for _ in range(NEW_TOKENS):
        logits = model(ids).logits[0, -1]
        seen = ids[0].unique()
        logits[seen] = torch.where(logits[seen] > 0, logits[seen] / penalty, logits[seen] * penalty)
        ids = torch.cat([ids, logits.argmax()[None, None]], dim=1)
    assert torch.equal(greedy(model, prompt(), repetition_penalty=penalty), ids[:, prompt().shape[1] :])


def test_generation_stops_at_the_end_token(model):
    tokens = greedy(model, prompt())[0]
    end = tokens[4].item()
    stopped = greedy(model, prompt(), eos_token_id=end)[0].tolist()
    assert stopped == tokens[: tokens.tolist().index(end) + 1].tolist()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("implementation", ["dynamic", "static", "offloaded", "offloaded_static"])
def test_caches(kind, attention, implementation):
    if implementation.startswith("offloaded") and not torch.accelerator.is_available():
        pytest.skip("an offloaded cache moves keys and values between the CPU and an accelerator: there is none")
    model = load_model(kind, attention)
    ids, mask = padded_batch("left")
    tokens = greedy(model, ids, attention_mask=mask, cache_implementation=implementation)
    assert tokens.tolist() == [greedy_alone(kind, row) for row in range(len(LENGTHS))]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_static_cache_without_padding(kind, attention):
    """One row and no mask to speak of: transformers leaves the mask of the first pass out."""
    model = load_model(kind, attention)
    for ids in (prompt(), prompt()[:, :2]):
        tokens = greedy(model, ids, attention_mask=torch.ones_like(ids), cache_implementation="static")
        assert tokens.tolist() == greedy(model, ids, attention_mask=torch.ones_like(ids)).tolist()


@contextmanager
def listed_replays():
    """The CUDA graphs that are replayed, as a list."""
    replayed, replay = [], torch.cuda.CUDAGraph.replay
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: (replayed.append(graph), replay(graph)))
        yield replayed


@pytest.mark.gpu
@pytest.mark.parametrize("compile_config", [None, CompileConfig(backend="cudagraphs")], ids=["compiled", "as it is"])
def test_steps_as_cuda_graphs(kind, compile_config):
    """Static caches of several sizes, weights that change between two calls, and what is collected step by step."""
    model = copy.deepcopy(load_model(kind)).to("cuda")
    ids, mask = (x.to("cuda") for x in padded_batch("left"))
    options = {"cache_implementation": "static", "compile_config": compile_config}
    batches = ((ids, mask), (ids, mask), (ids[:1], mask[:1]), (ids[1:, -3:], mask[1:, -3:]))
    for number, (rows, first) in enumerate(batches):
        with listed_replays() as replays:
            tokens = greedy(model, rows, attention_mask=first, **options)
        # Without the prompt's token and, unless all is compiled, the one before the recording; one more where a text
        # ended early.
        before = 0 if compile_config is None and number == 1 else 1
        assert tokens.shape[1] - 1 - before <= len(replays) <= tokens.shape[1]
        assert tokens.tolist() == greedy(model, rows, attention_mask=first).tolist()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.1)
    assert (
        greedy(model, ids, attention_mask=mask, **options).tolist() == greedy(model, ids, attention_mask=mask).tolist()
    )
    collected = {"return_dict_in_generate": True, "output_hidden_states": True, "output_logits": True}
    outputs = [
        model.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False, **collected, **more)
        for more in (options, {})
    ]
    for name in ("logits", "hidden_states"):
        steps, plain = (getattr(output, name)[1:] for output in outputs)
        for step, expected in zip(steps, plain, strict=True):
            step, expected = (x[-1] if isinstance(x, tuple) else x for x in (step, expected))
            torch.testing.assert_close(step, expected, atol=1e-4, rtol=1e-4)


def write(model, forward, rows, room):
    """The logits of a prompt's last token and of three that `forward` reads one by one, with a static cache."""
    ids, cache = prompt().repeat(rows, 1), StaticCache(config=model.config, max_cache_len=room)
    logits = [model(ids, past_key_values=cache).logits[:, -1:]]
    for position in range(ids.shape[1], ids.shape[1] + 3):
        positions = torch.full((rows, 1), position)
        token = {"input_ids": logits[-1].argmax(-1), "position_ids": positions}
        mask = torch.ones(rows, position + 1, dtype=torch.long)
        masks = model.create_masks_for_generate(
            config=model.config,
            inputs_embeds=torch.empty(rows, 1, 0),
            attention_mask=mask,
            past_key_values=cache,
        )
        logits.append(forward(**token, attention_mask=masks, past_key_values=cache).logits)
    return torch.cat(logits, dim=1)


def test_one_compilation_serves_all_layers(kind):
    """Whatever the number of rows and the size of the cache; a layer that somebody has put code into is left alone."""
    model = copy.deepcopy(load_model(kind))
    step, graphs = partwise_traced(model)
    for rows, room in ((3, 21), (5, 21), (5, 27)):
        logits = write(model, step, rows, room)
        torch.testing.assert_close(logits, write(model, model, rows, room), atol=1e-4, rtol=1e-4)
    assert len(graphs) == 2  # a layer, the head
    assert not any("forward" in vars(layer) for layer in model.model.layers)

    step.whole = model
    model.model.layers[0].forward = lambda hidden_states, *args, **kwargs: hidden_states
    torch.testing.assert_close(write(model, step, 3, 21), write(model, model, 3, 21))
    assert len(graphs) == 2
    with pytest.raises(NotCompiledError):
        write(model, step.compiled_only, 3, 21)


@torch._dynamo.config.patch(recompile_limit=1)
def test_only_what_is_compiled(kind):
    """One row is another compilation than several, whatever torch's limit; the size of the cache is none."""
    model = load_model(kind)
    step, graphs = partwise_traced(model)
    for traced, rows in enumerate((2, 1), start=1):
        with pytest.raises(NotCompiledError):
            write(model, step.compiled_only, rows, 21)
        expected = write(model, step, rows, 21)
        assert len(graphs) == 2 * traced
        for room in (21, 30):
            torch.testing.assert_close(write(model, step.compiled_only, rows, room), expected)
        assert len(graphs) == 2 * traced


def test_the_compiled_step_computes_gates_once(kind):
    """And not for every row of the matrix that they are multiplied with: before that they are written to memory."""
    model = load_model(kind)
    step, graphs = partwise_traced(model)
    cache = StaticCache(config=model.config, max_cache_len=21)
    length = model(prompt(), past_key_values=cache).logits.shape[1]
    step(input_ids=torch.tensor([[5]]), position_ids=torch.tensor([[length]]), past_key_values=cache)
    assert [node.target for node in graphs[0].graph.nodes].count("as_strided") == 1


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_step_is_recorded_where_the_model_is(model):
    """Not on the current device, where nothing would be recorded."""
    model = copy.deepcopy(model).to("cuda:1")
    ids = prompt().to("cuda:1")
    options = {"cache_implementation": "static", "compile_config": CompileConfig(backend="cudagraphs")}
    with listed_replays() as replays:
        tokens = greedy(model, ids, **options)
    assert replays
    assert tokens.tolist() == greedy(model, ids).tolist()


@pytest.mark.gpu
def test_a_step_that_cannot_be_recorded_runs_as_it_is(model, monkeypatch):
    model = copy.deepcopy(model).to("cuda")
    plain = greedy(model, prompt().to("cuda"))
    forward = type(model.model).forward

    def synchronising(self, *args, **kwargs):
        outputs = forward(self, *args, **kwargs)
        outputs.last_hidden_state.sum().item()
        return outputs

    monkeypatch.setattr(type(model.model), "forward", synchronising)
    options = {"cache_implementation": "static", "compile_config": CompileConfig(backend="cudagraphs")}
    for _ in range(2):
        assert greedy(model, prompt().to("cuda"), **options).tolist() == plain.tolist()
    # A recording that broke off leaves torch's random numbers, memory and the next recording as they should be.
    model.generate(prompt().to("cuda"), do_sample=True, max_new_tokens=4, **options)
    kept = torch.cuda.memory_allocated()
    for _ in range(3):
        greedy(model, prompt().to("cuda"), **options)
    assert torch.cuda.memory_allocated() < kept + 2**20
    monkeypatch.undo()
    with listed_replays() as replays:
        assert greedy(model, prompt().to("cuda"), **options).tolist() == plain.tolist()
    assert len(replays) >= plain.shape[1] - 2


def test_quantized_cache(model):
    """Keys and values in four bits: the prefill is exact, a step close, and `generate` takes it by its name."""
    pytest.importorskip("optimum.quanto", reason="needs optimum-quanto: pip install 'baichuan-hf[quantization]'")
    settings = {"backend": "quanto", "nbits": 4, "q_group_size": 4, "residual_length": 4}
    cache = QuantizedCache(config=model.config, **settings)
    exact = model(prompt()).logits[0]
    assert (model(prompt()[:, :-1], past_key_values=cache).logits[0] - exact[:-1]).abs().max() < TOLERANCE
    difference = (model(prompt()[:, -1:], past_key_values=cache).logits[0, 0] - exact[-1]).abs().mean()
    assert 0 < difference < 0.25 * exact[-1].std()

    tokens = greedy(model, prompt(), cache_implementation="quantized", cache_config=settings)
    assert tokens.shape == (1, NEW_TOKENS)
    assert tokens[0, 0] == exact[-1].argmax()


def test_compiled_forward_with_a_static_cache(kind):
    """Prefill and steps, each one graph that is compiled once (fullgraph=True), equal the plain model."""
    model = load_model(kind)
    ids, mask = padded_batch("left")
    prefill, cache_length = 6, 16
    # As long as the cache, so that a step has the shapes of the last one; what is to come counts as there.
    whole_mask = torch.nn.functional.pad(mask, (0, cache_length - ids.shape[1]), value=1)
    torch._dynamo.reset()
    compiled = torch.compile(model.forward, fullgraph=True, backend="aot_eager")
    results = []
    for forward in (compiled, model.forward):
        cache = StaticCache(config=model.config, max_cache_len=cache_length)
        pieces = [ids[:, :prefill], *ids[:, prefill:].split(1, dim=1)]
        logits = [forward(piece, attention_mask=whole_mask, past_key_values=cache).logits for piece in pieces]
        results.append(torch.cat(logits, dim=1)[mask.bool()])
    assert (results[0] - results[1]).abs().max() < 1e-4
    assert (results[0] - model(ids, attention_mask=mask).logits[mask.bool()]).abs().max() < TOLERANCE


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("chunks", [[4, 4, 1], [1, 8], [3, 3, 3]], ids=str)
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_several_tokens_on_a_cache_equal_one_pass(kind, attention, chunks, cache):
    model = load_model(kind, attention)
    ids, mask = padded_batch("left")
    past_key_values = StaticCache(config=model.config, max_cache_len=14) if cache == "static" else None
    logits, end = [], 0
    for chunk in chunks:
        start, end = end, end + chunk
        output = model(
            ids[:, start:end], attention_mask=mask[:, :end], past_key_values=past_key_values, use_cache=True
        )
        past_key_values = output.past_key_values
        logits.append(output.logits)
    difference = (torch.cat(logits, dim=1) - model(ids, attention_mask=mask).logits).abs()
    assert difference[mask.bool()].max() < TOLERANCE


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("size", [1, 4, 100])
def test_prefill_in_chunks(kind, size, cache):
    ids, mask = padded_batch("left")
    tokens = greedy(load_model(kind), ids, attention_mask=mask, prefill_chunk_size=size, cache_implementation=cache)
    assert tokens.tolist() == [greedy_alone(kind, row) for row in range(len(LENGTHS))]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_generation_with_left_padding_equals_rows_alone(kind, attention):
    ids, mask = padded_batch("left")
    tokens = greedy(load_model(kind, attention), ids, attention_mask=mask)
    assert tokens.tolist() == [greedy_alone(kind, row) for row in range(len(LENGTHS))]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
def test_padded_rows_equal_rows_alone(kind, attention, side, dtype):
    model = load_model(kind, attention, dtype)
    ids, mask = padded_batch(side)
    logits = model(ids, attention_mask=mask).logits
    assert logits.dtype == dtype
    assert logits.isfinite().all()
    for row in range(len(LENGTHS)):
        keep = mask[row].bool()
        difference = (model(ids[row, keep][None]).logits[0] - logits[row, keep]).float().abs()
        if dtype == torch.float32:
            assert difference.max() < TOLERANCE
        else:
            # Half of what bfloat16 (or float16) is from float32: the kernels round in another order.
            exact = load_model(kind, attention)(ids[row, keep][None]).logits[0]
            rounding = (logits[row, keep].float() - exact).abs().mean()
            assert difference.mean() <= 1.2 * rounding


@pytest.mark.parametrize("attention", ["sdpa", "paged|eager"])
def test_continuous_batching(kind, attention):
    torch.manual_seed(0)
    model = load_golden(MODELS[kind]).load().eval() if MODELS[kind] else random_model("sdpa", torch.float32).eval()
    model.set_attn_implementation(attention)
    ids, mask = padded_batch("left")
    prompts = [ids[row, mask[row].bool()].tolist() for row in range(len(LENGTHS))]
    config = GenerationConfig(**GREEDY, eos_token_id=2, pad_token_id=0, temperature=1.0, top_k=50, top_p=1.0)
    # By default the cache takes most of the memory there is.
    small = ContinuousBatchingConfig(num_blocks=16, block_size=16, max_batch_tokens=32)
    outputs = model.generate_batch(prompts, generation_config=config, continuous_batching_config=small)
    by_prompt = {tuple(output.prompt_ids): output.generated_tokens for output in outputs.values()}
    assert [by_prompt[tuple(ids)] for ids in prompts] == [greedy_alone(kind, row) for row in range(len(LENGTHS))]


def test_no_cache_and_logits_to_keep(model):
    whole = model(prompt()).logits
    assert model(prompt(), use_cache=False).past_key_values is None
    for keep in (1, 3):
        assert torch.allclose(model(prompt(), logits_to_keep=keep).logits, whole[:, -keep:], atol=1e-4)
    index = torch.tensor([0, 4])
    assert torch.allclose(model(prompt(), logits_to_keep=index).logits, whole[:, index], atol=1e-4)


def test_embeddings_in_place_of_ids(model):
    embeddings = model.get_input_embeddings()(prompt())
    assert torch.equal(model(inputs_embeds=embeddings).logits, model(prompt()).logits)
    tokens = model.generate(inputs_embeds=embeddings, **GREEDY)
    assert torch.equal(tokens, greedy(model, prompt()))


def test_future_tokens_change_nothing(model):
    changed = prompt().clone()
    changed[0, 6:] = 400
    difference = (model(changed).logits - model(prompt()).logits)[0].abs().amax(-1)
    assert difference[:6].max() < 1e-5
    assert difference[6:].min() > 1e-3


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(golden_folder("tokenizers/baichuan-surrogate"))


def test_text_iterator_streamer(model, tokenizer):
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    tokens = greedy(model, prompt(), streamer=streamer)[0]
    assert "".join(streamer) == tokenizer.decode(tokens, skip_special_tokens=True)


def test_text_streamer_prints_the_text(model, tokenizer, capsys):
    tokens = greedy(model, prompt(), streamer=TextStreamer(tokenizer))[0]
    printed = capsys.readouterr().out
    assert printed == tokenizer.decode(torch.cat([prompt()[0], tokens])) + "\n"
