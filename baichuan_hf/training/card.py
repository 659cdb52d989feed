"""The model card that a run writes: data, arguments, results, loss, hardware, versions, and how to load the model."""

import importlib.metadata
import platform
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import Trainer

from ..hub import save_card
from ..hub.folder_card import TAGS, auto_class_of, conditions_of, is_hub_name, license_of, loading_code
from .arguments import TrainArguments
from .record import chosen_arguments, digest, read_arguments


PACKAGES = ("baichuan-hf", "transformers", "torch", "accelerate", "datasets", "peft", "trl", "tokenizers")
# Metrics that say how fast it went, which is another matter.
RATES = ("_runtime", "_per_second", "_flos")

FINE_TUNED = {
    "en": "`{model}`, trained further by `baichuan-hf train --task {task}`.",
    "zh": "由 `baichuan-hf train --task {task}` 从 `{model}` 继续训练得到。",
}
FROM_SCRATCH = {
    "en": "Trained by `baichuan-hf train --task {task}` from random weights, in the shape of `{model}`.",
    "zh": "由 `baichuan-hf train --task {task}` 从随机权重训练，结构同 `{model}`。",
}


def find_license(arguments: TrainArguments) -> dict[str, str]:
    """What a card says of the licence: that of --license, else of the model that is trained further, or `unknown`."""
    if arguments.license:
        return {"license": arguments.license}
    return ({} if arguments.from_scratch else license_of(arguments.model)) or {"license": "unknown"}


def write_run_card(
    trainer: Trainer,
    arguments: TrainArguments,
    metrics: dict[str, float],
    *,
    pipeline_tag: str,
    folder: Path,
    adapter: bool,
) -> None:
    """Write the card of a run in each language, and its data, into `folder`, which holds an adapter or a model."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    base = model.get_base_model() if arguments.peft else model
    pushed = trainer.args.push_to_hub and folder == Path(str(trainer.args.output_dir))
    location = str(trainer.hub_model_id if pushed else folder)
    metadata = {
        **find_license(arguments),
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": pipeline_tag,
        "tags": [*TAGS, *(["lora"] if adapter else [])],
    }
    if not arguments.from_scratch and is_hub_name(arguments.model):
        metadata["base_model"] = arguments.model
    if is_hub_name(arguments.train_file):
        metadata["datasets"] = [arguments.train_file]
    summary = FROM_SCRATCH if arguments.from_scratch else FINE_TUNED
    data = {
        "name": Path(location).name,
        "metadata": metadata,
        "summary": {
            language: text.format(model=arguments.model, task=arguments.task) for language, text in summary.items()
        },
        **conditions_of(None if arguments.from_scratch else arguments.model, arguments.license),
        "usage": loading_code(folder).format(
            name=location, auto=auto_class_of(type(base).__name__), base=arguments.model
        ),
        "results": results_of(metrics, arguments, pipeline_tag),
        "sections": [
            {"title": {"en": "Data", "zh": "数据"}, "table": data_table(trainer, arguments)},
            {
                "title": {"en": "Arguments", "zh": "参数"},
                "text": {
                    "en": "As `baichuan-hf train` takes them from a file, `arguments.yaml`:",
                    "zh": "`baichuan-hf train` 可直接读取的文件 `arguments.yaml`：",
                },
                "code": yaml.safe_dump(
                    chosen_arguments(arguments, trainer.args), sort_keys=False, allow_unicode=True
                ).strip(),
            },
            {
                "title": {"en": "Training", "zh": "训练"},
                "table": training_table(trainer, metrics),
                **({"after": "![loss](loss.png)"} if (folder / "loss.png").is_file() else {}),
            },
        ],
    }
    save_card(data, folder)


def results_of(metrics: dict[str, float], arguments: TrainArguments, pipeline_tag: str) -> list[dict[str, Any]]:
    """What was measured on the rows held out, as rows of a card."""
    source = name_of(arguments.eval_file or arguments.train_file)
    return [
        {
            "task_type": pipeline_tag,
            "dataset_name": source,
            "dataset_type": source,
            "metric_type": key.removeprefix("eval_"),
            "metric_value": round(float(value), 4),
        }
        for key, value in metrics.items()
        if key.startswith("eval_") and not key.endswith(RATES)
    ]


def data_table(trainer: Trainer, arguments: TrainArguments) -> dict[str, Any]:
    """What the rows are from, by the names of the files; where those lie is among the arguments."""
    train, test = arguments.train_file, arguments.eval_file
    recorded = read_arguments(Path(str(trainer.args.output_dir)))
    sha = f"`{recorded[1]}`" if recorded else ""
    rows = [[{"en": "trained on", "zh": "训练"}, name_of(train), count(trainer.train_dataset), sha]]
    if trainer.eval_dataset is not None:
        share = {"en": f"{arguments.eval_fraction} of it", "zh": f"其中 {arguments.eval_fraction}"}
        source, sha = (name_of(test), f"`{digest(test)}`") if test else (share, "")
        rows.append([{"en": "evaluated on", "zh": "评测"}, source, count(trainer.eval_dataset), sha])
    seen = {"en": "rows, as the model sees them", "zh": "模型所见行数"}
    return {"columns": ["", {"en": "from", "zh": "来源"}, seen, "sha256"], "words": [1, 2, 4], "rows": rows}


def name_of(source: str) -> str:
    """Of a file or folder its name, of a data set on the Hub all."""
    return source if is_hub_name(source) else Path(source).name


def count(rows: Any) -> str:
    """`-` for a stream, whose end is not known."""
    return f"{len(rows):,}" if hasattr(rows, "__len__") else "-"


def training_table(trainer: Trainer, metrics: dict[str, float]) -> dict[str, Any]:
    state, device = trainer.state, trainer.args.device
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"
    rows: list[list[Any]] = [
        [{"en": "steps", "zh": "步数"}, f"{state.global_step:,}"],
        [{"en": "epochs", "zh": "轮数"}, f"{state.epoch or 0:.2f}"],
    ]
    if "train_loss" in metrics:
        rows.append([{"en": "mean training loss", "zh": "平均训练损失"}, f"{metrics['train_loss']:.4f}"])
    if "train_runtime" in metrics:
        rows.append([{"en": "seconds", "zh": "秒数"}, f"{metrics['train_runtime']:.0f}"])
    rows.append([{"en": "hardware", "zh": "硬件"}, f"{trainer.args.world_size} x {hardware}"])
    rows += [[package, version] for package in PACKAGES if (version := version_of(package))]
    return {"columns": ["", ""], "words": [1, 2], "rows": rows}


def version_of(package: str) -> str | None:
    if package == "baichuan-hf":
        from .. import __version__

        return __version__
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
