"""Training and judging one small language model, as fast as the device lets it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer, get_cosine_schedule_with_warmup

from ..checkpoints import bundled_checkpoint
from ..model.configuration_baichuan import BaichuanConfig
from ..model.modeling_baichuan import BaichuanForCausalLM
from .variants import Settings


# A text file is cut into so many parts of equal size; these are held out, all others are learnt.
PARTS = 40
HELD_OUT_PARTS = (10, 30)
# Tokens of a batch of evaluation: its logits are 800 MB in float32.
EVAL_TOKENS = 32768
# Steps before a step is captured as a CUDA graph: they fill the optimiser's state and choose the kernels.
STEPS_BEFORE_CAPTURE = 3


class Corpus(NamedTuple):
    """Text as tokens of the bundled tokenizer."""

    train: np.ndarray  # (blocks, length), uint16
    held_out: np.ndarray  # (windows, the longest length of evaluation), uint16
    bytes_per_token: float  # of the held-out text


def read_corpus(files: Sequence[Path], settings: Settings) -> Corpus:
    """Tokens of plain text files.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: there is too little text for one batch, or for one window to evaluate on.
    """
    tokenizer = AutoTokenizer.from_pretrained(bundled_checkpoint("tiny"))
    learnt: list[str] = []
    held_out: list[str] = []
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"--train-file {file}: no such file")
        text = file.read_text(encoding="utf-8")
        cuts = [len(text) * part // PARTS for part in range(PARTS + 1)]
        for part, (start, end) in enumerate(zip(cuts, cuts[1:], strict=False)):
            (held_out if part in HELD_OUT_PARTS else learnt).append(text[start:end])
    encoded = tokenizer(learnt + held_out, return_attention_mask=False, verbose=False)["input_ids"]
    train, rest = encoded[: len(learnt)], encoded[len(learnt) :]
    window = settings.eval_lengths[-1]
    # Windows do not cross parts: what a long context holds is one text.
    windows = [row[start : start + window] for row in rest for start in range(0, len(row) - window + 1, window)]
    stream = np.concatenate([np.asarray(row, np.uint16) for row in train]) if train else np.empty(0, np.uint16)
    blocks = stream[: len(stream) // settings.length * settings.length].reshape(-1, settings.length)
    if len(blocks) < settings.batch_size or not windows:
        raise ValueError(
            f"too little text: {len(blocks)} blocks of {settings.length} tokens to learn and {len(windows)} windows of"
            f" {window} to evaluate on, where at least {settings.batch_size} and 1 are needed. Give more --train-file."
        )
    num_bytes = sum(len(text.encode()) for text in held_out)
    return Corpus(blocks, np.asarray(windows, np.uint16), num_bytes / sum(map(len, rest)))


class Learner:
    """A model and its optimiser: AdamW, its rate rising over a twentieth of the steps and falling as a cosine to 0.

    On a CUDA device the matrices are multiplied in bfloat16, and a step is replayed as a CUDA graph, so that it costs
    what its kernels cost and not what Python does; a model with experts is not, since its shapes follow the routing.
    """

    def __init__(
        self, config: BaichuanConfig, settings: Settings, *, learning_rate: float, seed: int, device: torch.device
    ) -> None:
        torch.manual_seed(seed)
        self.device = device
        self.model = BaichuanForCausalLM(config).to(device)
        if config.num_local_experts:
            # Its loop runs under autocast, as the dense layers do; the grouped kernels take the weights' own dtype.
            self.model.set_experts_implementation("eager")
        self.on_cuda = device.type == "cuda"
        self.captures = self.on_cuda and not config.num_local_experts
        matrices = [parameter for parameter in self.model.parameters() if parameter.ndim > 1]
        vectors = [parameter for parameter in self.model.parameters() if parameter.ndim == 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
            lr=torch.tensor(learning_rate, device=device),  # a tensor: a captured step reads it anew
            betas=(0.9, 0.95),
            fused=True,
            capturable=self.captures,
        )
        self.scheduler = get_cosine_schedule_with_warmup(
            self.optimizer, num_warmup_steps=settings.steps // 20, num_training_steps=settings.steps
        )
        self.batch = torch.zeros(settings.batch_size, settings.length, dtype=torch.long, device=device)
        self.loss = torch.zeros((), device=device)
        self.stream = torch.cuda.Stream(device) if self.on_cuda else None
        self.graph: torch.cuda.CUDAGraph | None = None
        self.steps_done = 0

    def step(self, batch: Tensor) -> Tensor:
        """Learn (B, T) tokens; the mean loss before, which the next step overwrites."""
        with self._side_stream():
            self.batch.copy_(batch)
            if self.captures and self.steps_done == STEPS_BEFORE_CAPTURE:
                self.graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(self.graph, stream=self.stream):
                    self._compute()
            if self.graph is not None:
                self.graph.replay()
            else:
                self._compute()
            self.scheduler.step()
        self.steps_done += 1
        return self.loss

    def _compute(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        with self._autocast():
            loss = self.model(input_ids=self.batch, labels=self.batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.loss.copy_(loss.detach())

    @contextmanager
    def _side_stream(self) -> Iterator[None]:
        """Capturing a graph needs another stream than the default one."""
        if self.stream is None:
            yield
            return
        outer = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(outer)
        with torch.cuda.stream(self.stream):
            yield
        outer.wait_stream(self.stream)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.on_cuda)

    @torch.no_grad()
    def bits_per_byte(self, corpus: Corpus, length: int) -> float:
        """On the held-out windows, of which the model sees `length` tokens at once."""
        rows = torch.from_numpy(corpus.held_out.astype(np.int64)).view(-1, length).to(self.device)
        nats = torch.zeros((), device=self.device)
        self.model.eval()
        for batch in rows.split(max(1, EVAL_TOKENS // length)):
            with self._autocast():
                logits = self.model(input_ids=batch, use_cache=False).logits[:, :-1].float()
            nats += torch.nn.functional.cross_entropy(logits.mT, batch[:, 1:], reduction="sum")
        self.model.train()
        tokens = rows.shape[0] * (length - 1)  # nothing predicts a row's first
        return nats.item() / tokens / math.log(2) / corpus.bytes_per_token


def batches(corpus: Corpus, settings: Settings, seed: int, device: torch.device) -> Tensor:
    """The tokens of all steps in their order, (steps, B, T), the same for every model of a seed."""
    generator = np.random.default_rng(seed)
    needed = settings.steps * settings.batch_size
    epochs = math.ceil(needed / len(corpus.train))
    order = np.concatenate([generator.permutation(len(corpus.train)) for _ in range(epochs)])[:needed]
    tokens = torch.from_numpy(corpus.train[order].astype(np.int32)).to(device)
    return tokens.view(settings.steps, settings.batch_size, settings.length)
