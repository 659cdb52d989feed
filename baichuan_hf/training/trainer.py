"""What every training task shares: the model with its adapters, resuming, and what is written at the end."""

import dataclasses
import difflib
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, prepare_model_for_kbit_training
from safetensors import safe_open
from torch import nn
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import SequentialSampler
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BitsAndBytesConfig,
    EarlyStoppingCallback,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.distributed import DistributedConfig
from transformers.utils import is_bitsandbytes_available

from ..adapters.loading import save_base_config
from ..checkpoints import resolve_model
from ..conversion.merging import merge_adapter
from ..conversion.to_llama import llama_class_name, llama_config
from ..model.configuration_baichuan import BaichuanConfig, list_presets
from ..model.modeling_baichuan import BaichuanPreTrainedModel
from ..model.quantized import unfit_for_cpu
from ..model.saving import save_layout
from .arguments import TrainArguments
from .card import write_run_card
from .keep_zeros import KeepZeros
from .plot import plot_history
from .quantization_aware import prepare_quantization
from .record import check_checkpoints, last_complete_checkpoint, record_run
from .search import search
from .watch import explain_out_of_memory, watch_loss


# Kept in full precision under --qlora: what starts from random weights must be trained itself.
HEADS = ["score", "classifier", "qa_outputs", "lm_head", "cross_attn"]


class OrderedTrainer(Trainer):
    """Trainer that evaluates rows in their order, for metrics that go by it: `group_by_length` would shuffle these
    too."""

    def _get_eval_sampler(self, eval_dataset: Any) -> SequentialSampler | None:
        return SequentialSampler(eval_dataset) if self.args.world_size <= 1 else None


def load_tokenizer(arguments: TrainArguments) -> PreTrainedTokenizerBase:
    """That of --model; a preset has none and takes `preset_tokenizer`."""
    preset = arguments.from_scratch and arguments.model in list_presets()
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(arguments.preset_tokenizer if preset else arguments.model))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(
    auto_class: Any,
    arguments: TrainArguments,
    training_arguments: TrainingArguments,
    *,
    tokenizer: PreTrainedTokenizerBase,
    **config_values: Any,
) -> PreTrainedModel:
    """The model of --model under `auto_class`, its new parts drawn from --seed.

    Weights are float32, whatever the file holds: an optimiser's small steps vanish in a bfloat16 weight. Under
    adapters they are frozen, so with --bf16 they are bfloat16. The config gets `config_values` and the id of padding.
    """
    set_seed(training_arguments.seed)
    if not (arguments.from_scratch and arguments.model in list_presets()):  # which checks them itself
        _check_overrides(arguments)
    config_values |= {"pad_token_id": tokenizer.pad_token_id, **arguments.config_values()}
    if arguments.from_scratch:
        if arguments.model in list_presets():
            ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
            values = {"vocab_size": len(tokenizer), "dtype": "float32"} | ids | config_values
            config = BaichuanConfig.from_preset(arguments.model, **values)
        else:
            config = AutoConfig.from_pretrained(resolve_model(arguments.model), **config_values, dtype="float32")
        return auto_class.from_config(config)
    if arguments.qlora:
        # Not as None otherwise: a folder that is quantised already would forget that it is.
        config_values["quantization_config"] = _nf4(auto_class, arguments, training_arguments)
    model, loading = auto_class.from_pretrained(
        resolve_model(arguments.model),
        dtype=torch.bfloat16 if arguments.peft and training_arguments.bf16 else torch.float32,
        distributed_config=_mesh(arguments.tensor_parallel_size, training_arguments.world_size),
        output_loading_info=True,
        **config_values,
    )
    model.new_weights = sorted(loading["missing_keys"])
    if arguments.merge and not arguments.qlora and getattr(model, "is_quantized", False):
        raise ValueError(
            f"--merge: {arguments.model} is quantised. Train without, and merge into the model that it was made from:"
            f" baichuan-hf merge {training_arguments.output_dir} DST --base MODEL"
        )
    return model


def _check_overrides(arguments: TrainArguments) -> None:
    """What is no field of a config becomes an argument of the model, which has none of that name either."""
    overrides = arguments.config_values()
    if not overrides:
        return
    config = AutoConfig.from_pretrained(resolve_model(arguments.model))
    for name in overrides:
        if not hasattr(config, name):
            near = difflib.get_close_matches(name, config.to_dict(), n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ValueError(f"--config-overrides: {name!r} is no field of {type(config).__name__}{hint}")


def _mesh(size: int, world_size: int) -> DistributedConfig | None:
    """How `world_size` processes divide the model: in groups of `size`, each of which holds all of it."""
    if size == 1:
        return None
    if size < 1 or world_size % size:
        raise ValueError(
            f"--tensor-parallel-size {size}: there are {world_size} processes, no multiple of it; start the command"
            f" with torchrun --nproc-per-node {max(size, 2)} -m baichuan_hf.cli.main train ..."
        )
    return DistributedConfig(tp_size=size, fsdp_size=world_size // size)


def _nf4(auto_class: Any, arguments: TrainArguments, training_arguments: TrainingArguments) -> BitsAndBytesConfig:
    if not is_bitsandbytes_available():
        raise ImportError("--qlora needs bitsandbytes: pip install 'baichuan-hf[quantization]'")
    unfit = []
    if training_arguments.device.type == "cpu":
        with torch.device("meta"):
            unfit = unfit_for_cpu(auto_class.from_config(AutoConfig.from_pretrained(resolve_model(arguments.model))))
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if training_arguments.bf16 else torch.float32,
        llm_int8_skip_modules=[rf"(.*\.)?{name}" for name in (*HEADS, *unfit)],
    )


def add_adapters(
    model: PreTrainedModel, arguments: TrainArguments, *, task_type: str, new_tokens: Sequence[int] = ()
) -> PreTrainedModel | PeftModel:
    """`model` itself without --lora and --qlora; else wrapped by PEFT, which trains the adapters and what is new: a
    head, and the embeddings of `new_tokens`."""
    if not arguments.peft:
        return model
    stacked = [name for name, parameter in model.named_parameters() if parameter.ndim == 3]
    if arguments.qlora and stacked:
        raise ValueError(
            f"--qlora quantises linear layers, but the experts of this model are not ({stacked[0]} and"
            f" {len(stacked) - 1} more), and would be trained around in float32: use --lora"
        )
    if getattr(model, "is_quantized", False):
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    names = {name.rpartition(".")[2]: module for name, module in model.named_modules()}
    # A language model's own head is trained already, and large.
    new_head = any(name.startswith("lm_head.") for name in getattr(model, "new_weights", ()))
    embeddings = [name for name, module in names.items() if module is model.get_input_embeddings()]
    target = arguments.lora_target_modules
    config = LoraConfig(
        task_type=task_type,
        r=arguments.lora_r,
        lora_alpha=arguments.lora_alpha,
        lora_dropout=arguments.lora_dropout,
        target_modules="all-linear" if target == ["all-linear"] else target,
        # PEFT names these heads itself, but too late for those that `all-linear` would otherwise adapt as well.
        modules_to_save=[name for name in HEADS if name in names and (new_head or name != "lm_head")] or None,
        trainable_token_indices={embeddings[0]: [*new_tokens]} if new_tokens else None,
    )
    return get_peft_model(model, config)


def checkpoint_to_resume(training_arguments: TrainingArguments, model: nn.Module) -> str | None:
    """The folder that --resume-from-checkpoint means (`true`: the last one in --output-dir), checked against `model`.

    Trainer itself would skip weights that it does not find, and train on with random ones. Raises ValueError.
    """
    folder = str(training_arguments.resume_from_checkpoint or "false")
    if folder.lower() == "false":
        return None
    if folder.lower() == "true":
        output_dir = str(training_arguments.output_dir)
        last = last_complete_checkpoint(Path(output_dir))
        if last is None:
            raise ValueError(f"--resume-from-checkpoint true: there is no checkpoint-* folder in {output_dir}")
        folder = str(last)
    prefix = f"--resume-from-checkpoint {folder}:"
    if not (Path(folder) / "trainer_state.json").is_file():
        raise ValueError(f"{prefix} no trainer_state.json; give a checkpoint-* folder that an earlier run has saved")
    # What FSDP2 and DeepSpeed save in parts is checked where it is loaded.
    if any(Path(folder).glob("pytorch_model_fsdp_*")) or (Path(folder) / "latest").exists():
        return folder
    adapters = isinstance(model, PeftModel)
    saved: dict[str, list[int]] = {}
    for file in Path(folder).glob("adapter_model*.safetensors" if adapters else "model*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            saved |= {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118, not a dict
    if not saved:
        missing = "adapter; this run has --lora or --qlora" if adapters else "full model; this run trains all weights"
        raise ValueError(f"{prefix} holds no {missing}, the one that saved it did not")
    state = get_peft_model_state_dict(model) if adapters else model.state_dict()
    # Of tied weights one is saved.
    tied = getattr(model, "all_tied_weights_keys", ())
    ours = {name: list(tensor.shape) for name, tensor in state.items() if name in saved or name not in tied}
    for name in sorted(saved.keys() | ours.keys()):
        if saved.get(name) != ours.get(name):
            raise ValueError(
                f"{prefix} saved by another model or with other options: {name} is {saved.get(name, 'absent')} there, "
                f"{ours.get(name, 'absent')} here"
            )
    return folder


def check_output_dir(training_arguments: TrainingArguments, arguments: TrainArguments) -> None:
    """Raises ValueError if what is in --output-dir would be mixed with what this run saves, or lost."""
    folder = Path(str(training_arguments.output_dir))
    file, kind = ("config.json", "a full model") if arguments.peft else ("adapter_config.json", "an adapter")
    if (folder / file).exists():
        raise ValueError(f"--output-dir {folder}: holds {kind} of an earlier run ({file}); give another folder")
    if (folder / "config.json").exists() and not (folder / "training_args.bin").exists():
        raise ValueError(f"--output-dir {folder}: holds a model that no training has saved; give another folder")
    check_checkpoints(training_arguments, arguments)


def train_and_save(
    trainer: Trainer,
    arguments: TrainArguments,
    load: Callable[[TrainArguments], PreTrainedModel],
    *,
    pipeline_tag: str,
) -> dict[str, float]:
    """Train, evaluate where there are rows for it, and write what transformers' example scripts write.

    Into --output-dir: model (or adapter) and tokenizer, all_results.json, trainer_state.json, loss.png, a card
    (README.md, README.zh-CN.md and card.yaml), arguments.yaml, from which `baichuan-hf train` repeats the run; with
    --merge the merged model, for which `load` gives the model that the adapter adapts. Returns the metrics of
    all_results.json. Raises NonFiniteLossError at the first loss that is no number, MemoryError saying what to change.
    """
    check_layout(trainer, arguments)
    arguments.prepare_trainer(trainer)
    watch_loss(trainer)
    if arguments.qat:
        prepare_quantization(trainer.model, group_size=arguments.qat_group_size)
    if arguments.keep_zeros:
        trainer.add_callback(KeepZeros())
    if arguments.hp_search:
        return search(trainer, arguments)
    if arguments.early_stopping_patience:
        trainer.add_callback(EarlyStoppingCallback(arguments.early_stopping_patience))
    if arguments.lr_step_size:
        optimizer = trainer.create_optimizer()
        trainer.lr_scheduler = StepLR(optimizer, arguments.lr_step_size, arguments.lr_step_gamma)
    checkpoint = checkpoint_to_resume(trainer.args, trainer.model)
    if trainer.is_world_process_zero():
        record_run(arguments, trainer.args, checkpoint)
    with explain_out_of_memory(arguments, trainer.args):
        metrics = trainer.train(resume_from_checkpoint=checkpoint).metrics
    if trainer.is_fsdp_enabled:
        # Whatever checkpoints are, what is left at the end is a model that loads anywhere.
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    folder = Path(str(trainer.args.output_dir))
    write_card = functools.partial(write_run_card, trainer, arguments, metrics, pipeline_tag=pipeline_tag)
    with save_layout(arguments.layout):
        trainer.save_model()
        if arguments.peft and trainer.is_world_process_zero():
            save_base_config(trainer.accelerator.unwrap_model(trainer.model).get_base_model(), folder)
        trainer.save_metrics("train", metrics)
        if trainer.eval_dataset is not None:
            evaluation = trainer.evaluate()
            trainer.save_metrics("eval", evaluation)
            metrics |= evaluation
        trainer.save_state()
        if trainer.is_world_process_zero():
            plot_history(trainer.state.log_history, folder / "loss.png")
            write_card(folder=folder, adapter=arguments.peft)
        if trainer.args.push_to_hub:
            # Its own card would take the place of ours.
            trainer.create_model_card = lambda **_: None
            trainer.push_to_hub()
        if arguments.merge and trainer.is_world_process_zero():
            base = load(dataclasses.replace(arguments, lora=False, qlora=False, merge=False))
            merged = save_merged(base, trainer.processing_class, str(folder))
            write_card(folder=merged, adapter=False)
    return metrics


def check_layout(trainer: Trainer, arguments: TrainArguments) -> None:
    """Raises ValueError before the training if the model that it makes could not be saved in --layout."""
    if arguments.layout == "baichuan":
        return
    model = trainer.accelerator.unwrap_model(trainer.model)
    base = model.get_base_model() if arguments.peft else model
    if not isinstance(base, BaichuanPreTrainedModel):
        raise ValueError(f"--layout {arguments.layout} is not for {type(base).__name__}, a class of transformers")
    if arguments.layout == "llama":
        llama_class_name(type(base).__name__)
        llama_config(base.config)


def save_merged(base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, adapter_dir: str) -> Path:
    """Fold the adapter of `adapter_dir` into `base`, the model it adapts, and save to the folder `merged` in there."""
    folder = Path(adapter_dir) / "merged"
    merge_adapter(base, adapter_dir).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
