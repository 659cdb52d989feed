"""The stored numbers of the original code: tensors, facts and the checkpoint that they belong to."""

import functools
import hashlib
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from .models import golden_folder


# The golden data suggest it for float32 logits; between two routes the original differs by up to 4e-5.
TOLERANCE = 2e-4

GOLDEN_FAMILIES = ["baichuan-7b", "baichuan-13b", "baichuan2-7b", "baichuan2-13b"]
ALIBI_FAMILIES = ["baichuan-13b", "baichuan2-13b"]
ROPE_FAMILIES = ["baichuan-7b", "baichuan2-7b"]
NORMHEAD_FAMILIES = ["baichuan2-7b", "baichuan2-13b"]


@dataclass(frozen=True)
class Golden:
    """One folder of golden data."""

    name: str
    folder: Path
    facts: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def config_overrides(self) -> dict[str, Any]:
        """The vocabulary of 512 is too small for the head to be recognised as Baichuan2's."""
        return {"normalize_lm_head": True} if self.name in NORMHEAD_FAMILIES else {}

    @property
    def alibi(self) -> bool:
        return self.name in ALIBI_FAMILIES

    @functools.cached_property
    def checkpoint(self) -> Path:
        """A folder in the original format: the golden one, or where that has no weights a rebuilt one."""
        if list(self.folder.glob("pytorch_model*.bin")):
            return self.folder
        return rebuild_checkpoint(self.folder, Path(tempfile.mkdtemp(prefix=f"golden-{self.name}-")))

    def load(self, auto_class: Any = None, **kwargs: Any) -> Any:
        """The checkpoint through an Auto class, in eval mode, as a user loads it."""
        from transformers import AutoModelForCausalLM

        return (auto_class or AutoModelForCausalLM).from_pretrained(
            self.checkpoint, **({"dtype": torch.float32} | self.config_overrides | kwargs)
        )

    def json(self, name: str) -> dict[str, Any]:
        return json.loads((self.folder / name).read_text(encoding="utf-8"))


@functools.cache
def load_golden(name: str) -> Golden:
    folder = golden_folder(name)
    facts = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    return Golden(name, folder, facts, load_file(folder / "expected.safetensors"))


def logits_difference(actual: Tensor, expected: Tensor, mask: Tensor | None = None) -> float:
    """Largest absolute difference, over the positions where `mask` is 1 and the words that `expected` holds.

    The selection in tests/golden keeps the logits of the first words only.
    """
    difference = (actual[..., : expected.shape[-1]].float() - expected.float()).abs()
    return (difference if mask is None else difference[mask.bool()]).max().item()


def sha256(tensor: Tensor) -> str:
    """Of the raw bytes, as in expected.json."""
    return hashlib.sha256(tensor.detach().contiguous().numpy().tobytes()).hexdigest()


def draw_weights(facts: dict[str, Any], config: dict[str, Any]) -> dict[str, Tensor]:
    """The weights of a golden folder, drawn again from their seed by the recipe in the README of the golden data.

    Four checkpoints do not fit into the 3 MB of tests/golden, and random float32 numbers do not compress. `facts` is
    expected.json; its sha256 of each original weight shows whether a draw is the original's, bit for bit
    (tests/golden/select_golden.py requires it).
    """
    generator = torch.Generator().manual_seed(facts["sizes"]["seed"])
    normalised_head = facts["family"] in NORMHEAD_FAMILIES
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    weights = {}
    for name, spec in facts["state_dict"].items():
        if name.endswith("rotary_emb.inv_freq"):
            weights[name] = 1.0 / 10000 ** (torch.arange(0, head_dim, 2).float() / head_dim)
            continue
        weight = torch.randn(spec["shape"], generator=generator)
        if name == "lm_head.weight" and normalised_head:
            weight = weight * (0.5 + 1.5 * torch.rand(spec["shape"][0], 1, generator=generator))
        elif name == "lm_head.weight":
            weight = weight * 0.5
        elif "norm" in name:
            weight = 1 + 0.1 * weight
            if name == "model.norm.weight" and normalised_head:
                weight = weight * 4
        elif name != "model.embed_tokens.weight":
            weight = weight * 0.2
        weights[name] = weight
    return weights


def rebuild_checkpoint(folder: Path, destination: Path) -> Path:
    """Writes `folder` with its weights drawn again to `destination`, in the files of the original."""
    for name in ("config.json", "generation_config.json", "pytorch_model.bin.index.json"):
        if (folder / name).exists():
            (destination / name).write_bytes((folder / name).read_bytes())
    facts = json.loads((folder / "expected.json").read_text())
    weights = draw_weights(facts, json.loads((folder / "config.json").read_text()))
    places = dict.fromkeys(weights, "pytorch_model.bin")
    index = destination / "pytorch_model.bin.index.json"
    if index.exists():
        places = json.loads(index.read_text())["weight_map"]
    for file in sorted(set(places.values())):
        torch.save({name: weight for name, weight in weights.items() if places[name] == file}, destination / file)
    return destination
