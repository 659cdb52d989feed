"""Checkpoint folders into smaller ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..checkpoints import resolve_model
from ..data.tables import load_train_and_test, require_columns
from ..model.checkpoint_files import written_beside
from ..model.registration import AUTO_CLASSES
from .calibration import Quality, make_batches, measure_quality
from .importance import Batches, block_influence, head_importance, input_norms
from .structure import evenly_spread, keep_heads, keep_layers
from .weights import prune_weights, zero_share


@dataclass(frozen=True)
class Measured:
    """A model before or after: the quality is None without texts that have what to score against."""

    parameters: int
    zeros: float  # share of the weights of linear layers
    quality: Quality | None


@dataclass(frozen=True)
class Calibration:
    """Texts to measure importance on, and the quality: half of them each."""

    file: str
    text_column: str = "text"
    label_column: str | None = None
    rows: int = 256
    max_length: int = 512


def prune_folder(
    source: str,
    destination: str,
    *,
    layers: int | None = None,
    heads: int | None = None,
    sparsity: float | None = None,
    pattern: str | None = None,
    calibration: Calibration | None = None,
) -> tuple[Measured, Measured]:
    """Write a smaller `source` to `destination`, with its tokenizer; returns what it was before and after.

    Args:
        source: folder or Hub name of a Baichuan model, of any task.
        destination: a folder that holds no model.
        layers: how many to keep: those that change their input most (`block_influence`) if there is a `calibration`,
            else evenly spread ones.
        heads: how many to keep in each layer, the most important ones (`head_importance`); needs a `calibration`.
        sparsity: share of each row's weights to set to zero; by Wanda's measure if there is a `calibration`, else by
            magnitude.
        pattern: in its place, as `2:4`.
        calibration: texts; of a classifier with labels.

    Raises ValueError or OSError, naming the argument, for what cannot be done.
    """
    if layers is heads is sparsity is pattern is None:
        raise ValueError("nothing to do: give --layers, --heads, --sparsity or --pattern")
    if heads is not None and calibration is None:
        raise ValueError("--heads needs --text-file: heads are chosen by what the loss says of them")
    if (Path(destination) / "config.json").exists():
        raise ValueError(f"{destination} holds a model already: name another folder")
    texts, labels = _read(calibration) if calibration is not None else ((), None)
    model, tokenizer = load(source)
    chosen: Batches = []
    scored: list[dict[str, torch.Tensor]] = []
    if calibration is not None:
        chosen, scored = (
            make_batches(
                model, tokenizer, texts[half::2], labels and labels[half::2], max_length=calibration.max_length
            )
            for half in (0, 1)
        )
    before = _measure(model, scored)
    if layers is not None:
        total = model.config.num_hidden_layers
        keep = evenly_spread(total, layers)
        if calibration is not None:
            keep = block_influence(model, chosen).topk(layers).indices.tolist()
        keep_layers(model, keep)
    if heads is not None:
        total = model.config.num_key_value_heads
        if not 1 <= heads <= total:
            raise ValueError(f"--heads is {heads}; the model has {total} in each layer that can be taken out")
        if "labels" not in next(iter(chosen)):
            raise ValueError("--heads needs a loss: of a classifier give --label-column; other tasks have none here")
        keep_heads(model, head_importance(model, chosen).topk(heads).indices.tolist())
    if sparsity is not None or pattern is not None:
        norms = input_norms(model, chosen) if calibration is not None else None
        prune_weights(model, sparsity=sparsity, pattern=pattern, norms=norms)
    after = _measure(model, scored)
    with written_beside(Path(destination)) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return before, after


def load(source: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model of a folder, of the class that its config names, and its tokenizer."""
    folder = resolve_model(source)
    config = AutoConfig.from_pretrained(folder)
    classes = {model_class.__name__: model_class for model_class in AUTO_CLASSES.values()}
    name = (config.architectures or ["BaichuanForCausalLM"])[0]
    if name not in classes:
        raise ValueError(f"{source} is a {name}: only Baichuan models can be pruned, {', '.join(classes)}")
    model = classes[name].from_pretrained(folder, dtype="auto").eval()
    return model, AutoTokenizer.from_pretrained(folder)


def _read(calibration: Calibration) -> tuple[Sequence[str], Sequence[str] | None]:
    rows = load_train_and_test(calibration.file)["train"]
    columns = {"--text-column": calibration.text_column}
    if calibration.label_column is not None:
        columns["--label-column"] = calibration.label_column
    require_columns(rows, columns, calibration.file)
    rows = rows.filter(lambda row: bool(row[calibration.text_column]), desc="Dropping empty rows").shuffle(seed=0)
    rows = rows.select(range(min(calibration.rows, len(rows))))
    if len(rows) < 2:
        raise ValueError(
            f"{calibration.file}: holds {len(rows)} texts; two are the least, to choose by and to score on"
        )
    labels = None
    if calibration.label_column is not None:
        labels = [str(label) for label in rows[calibration.label_column]]
    return list(rows[calibration.text_column]), labels


def _measure(model: PreTrainedModel, scored: list[dict[str, torch.Tensor]]) -> Measured:
    quality = measure_quality(model, scored) if scored and "labels" in scored[0] else None
    return Measured(model.num_parameters(), zero_share(model), quality)
