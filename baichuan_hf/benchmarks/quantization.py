"""`baichuan-hf bench quantization`: what fewer bits save of size and time, and cost of quality.

A checkpoint is quantised into a folder by each method and loaded from there; a shape of `SHAPES` has random weights,
of which only size and speed mean anything. All models are in memory at once and take turns.
"""

from __future__ import annotations

import copy
import importlib.metadata
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from ..checkpoints import resolve_model
from ..model.configuration_baichuan import BaichuanConfig
from ..model.modeling_baichuan import BaichuanForCausalLM
from ..quantization import METHODS, quantization_config, quantize_folder
from ..quantization.folders import size_of, skipped, suitable_layers
from .choices import SHAPES, check_choices
from .rows import append_rows, machine
from .timing import interleaved


UNQUANTISED = "none"
# Tokens of the text that is read, and of the one that others are written behind.
READ, PROMPT = 512, 16
GROUP_SIZE = 32  # divides the widths of the tiny checkpoints, too


class Candidate(NamedTuple):
    """A model to measure."""

    method: str
    head: bool
    model: PreTrainedModel
    bytes: int  # of its file, or of what it takes on a GPU; else 0
    left: Sequence[str]  # kinds of layers that do not suit the method


def measure_quantization(
    rows: Path,
    *,
    model: str | None = None,
    shape: str | None = None,
    methods: Sequence[str],
    head: bool = False,
    texts: Sequence[str] = (),
    eval_file: Path | None = None,
    group_size: int = GROUP_SIZE,
    static: bool = False,
    new_tokens: int = 32,
    rounds: int = 5,
    device: torch.device,
    command: str = "",
    report: Callable[[str], None] = print,
) -> None:
    """Append a row for the model as it is and one for every method; what cannot be quantised so is reported.

    Args:
        rows: ROWS.csv.
        model: a folder, or `tiny`; or give
        shape: a name in SHAPES.
        methods: names in METHODS.
        head: whether to measure each with the head quantised, too.
        texts: for `gptq`.
        eval_file: plain text that bits per byte are of; None: the half pages that every copy of the package has.
        group_size: inputs that share a scale, in methods that have groups.
        static: generate with a static cache, which transformers compiles on a GPU.
        new_tokens: to generate; with a static cache a few tokens say little, as every call records its step anew.
        rounds: turns, of which the median counts.
        device: where to run.
        command: written into every row.
        report: called with a line for each row.

    Raises:
        ValueError: neither or both of model and shape are given, or a name is unknown.
    """
    if (model is None) == (shape is None):
        raise ValueError("Give either --model or --shape.")
    check_choices("method", methods, METHODS)
    wanted = [(UNQUANTISED, False), *((method, part) for method in methods for part in ([False, True][: 1 + head]))]
    with tempfile.TemporaryDirectory() as folder:
        if model is not None:
            found = _folders(model, wanted, texts, group_size, device, Path(folder), report)
        else:
            check_choices("shape", [shape or ""], SHAPES)
            found = _shapes(shape or "", wanted, group_size, device, report)
        candidates = list(found)
    names = [f"{candidate.method}{' head' if candidate.head else ''}" for candidate in candidates]
    actions = {}
    for name, candidate in zip(names, candidates, strict=True):
        actions[f"{name} reads"] = _reading(candidate.model)
        actions[f"{name} writes"] = _writing(candidate.model, static, new_tokens)
    seconds = {name: median(values) for name, values in interleaved(actions, device, rounds=rounds).items()}
    origin = {**machine(device), "command": command}
    for name, candidate in zip(names, candidates, strict=True):
        reads, writes = seconds[f"{name} reads"], seconds[f"{name} writes"]
        row = {
            "model": model or shape,
            "method": candidate.method,
            "head": int(candidate.head),
            "library": _library(candidate.method),
            "left_as_they_are": " ".join(candidate.left),
            "megabytes": f"{candidate.bytes / 1e6:.1f}" if candidate.bytes else "",
            "bits_per_byte": _quality(candidate.model, model, eval_file),
            "reads_per_second": f"{READ / reads:.0f}",
            "writes_per_second": f"{new_tokens / writes:.1f}",
            "times_reading": f"{seconds[f'{UNQUANTISED} reads'] / reads:.2f}",
            "times_writing": f"{seconds[f'{UNQUANTISED} writes'] / writes:.2f}",
            "static_cache": int(static),
        }
        append_rows(rows, [{**row, **origin}])
        report(", ".join(f"{key} {value}" for key, value in row.items() if value != ""))


def _folders(
    source: str,
    wanted: list[tuple[str, bool]],
    texts: Sequence[str],
    group_size: int,
    device: torch.device,
    folder: Path,
    report: Callable[[str], None],
) -> Iterator[Candidate]:
    for method, head in wanted:
        made, left = Path(resolve_model(source)), list[str]()
        if method != UNQUANTISED:
            made = folder / f"{method}-{head}"
            try:
                settings: dict[str, Any] = {"group_size": group_size, "texts": texts, "device": str(device)}
                left = quantize_folder(source, made, method=method, head=head, **settings).left
            except (ImportError, ValueError) as error:
                report(f"{method}: not measured: {error}")
                continue
        loaded = AutoModelForCausalLM.from_pretrained(made, dtype="auto", device_map=str(device)).eval()
        yield Candidate(method, head, loaded, size_of(made), left)


def _shapes(
    shape: str,
    wanted: list[tuple[str, bool]],
    group_size: int,
    device: torch.device,
    report: Callable[[str], None],
) -> Iterator[Candidate]:
    # As after folding: a plain head, so that it can be quantised or not.
    config = BaichuanConfig(**SHAPES[shape], normalize_lm_head=False, dtype="bfloat16")
    with device:
        model = BaichuanForCausalLM._from_config(config, dtype=torch.bfloat16).eval()
    yield Candidate(UNQUANTISED, False, model, _allocated(device), [])
    for method, head in wanted[1:]:
        before = _allocated(device)
        try:
            left = suitable_layers(model, method, group_size)[1]
            settings = quantization_config(method, skip=skipped(left, head=head), group_size=group_size)
            quantised = BaichuanForCausalLM.from_pretrained(
                None,
                config=copy.deepcopy(config),
                state_dict={name: weight.clone() for name, weight in model.state_dict().items()},
                dtype=torch.bfloat16,
                quantization_config=settings,
                device_map={"": device},
            ).eval()
        except (ImportError, ValueError, RuntimeError) as error:
            report(f"{method}: not measured: {' '.join(str(error).split())[:200]}")
            continue
        yield Candidate(method, head, quantised, _allocated(device) - before, left)


def _allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def _reading(model: PreTrainedModel) -> Callable[[], object]:
    ids = _ids(model, READ)

    @torch.inference_mode()
    def read() -> None:
        model(ids, logits_to_keep=1, use_cache=False)

    return read


def _writing(model: PreTrainedModel, static: bool, new_tokens: int) -> Callable[[], object]:
    ids = _ids(model, PROMPT)
    cache = {"cache_implementation": "static"} if static else {}
    settings: dict[str, Any] = {"do_sample": False, "min_new_tokens": new_tokens, "max_new_tokens": new_tokens} | cache
    return lambda: model.generate(ids, attention_mask=torch.ones_like(ids), **settings)


def _ids(model: PreTrainedModel, count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(3, model.config.vocab_size, (1, count), generator=generator).to(model.device)


def _quality(model: PreTrainedModel, source: str | None, eval_file: Path | None) -> str:
    """Bits per byte; of random weights nothing."""
    if source is None:
        return ""
    from ..training.tiny.evaluate import bits_per_byte, written_texts  # all that training needs comes with it

    documents = [document for page in written_texts().values() for document in page]
    if eval_file is not None:
        documents = eval_file.read_text(encoding="utf-8").splitlines()
    rates = bits_per_byte(model, AutoTokenizer.from_pretrained(resolve_model(source)), documents)
    return f"{rates['model']:.4f}"


def _library(method: str) -> str:
    if method == UNQUANTISED:
        return ""
    package = METHODS[method].packages[0]
    return f"{package} {importlib.metadata.version(package)}"
