"""`--task dpo`: prefer the chosen answers to the rejected ones (Rafailov et al. 2023), by TRL's DPOTrainer."""

import dataclasses
import functools
import importlib.util
from dataclasses import dataclass
from typing import Any

from datasets import Dataset, DatasetDict
from peft import PeftModel
from transformers import AutoModelForCausalLM, TrainingArguments

from ...adapters.trl import normalize_fused_head
from ...data.conversations import Message, to_messages
from ...data.tables import load_train_and_test
from ..arguments import TrainArguments, option
from ..trainer import add_adapters, check_output_dir, load_model, load_tokenizer, train_and_save
from .language_model import with_eval_rows


@dataclass
class PreferenceArguments(TrainArguments):
    """What `--task dpo` takes besides."""

    beta: float = option("How strongly the model is held to where it started; smaller lets it move farther.", 0.1)


def train_preferences(arguments: PreferenceArguments, training_arguments: TrainingArguments) -> dict[str, float]:
    """Train on pairs of a better and a worse answer to the same prompt.

    Without adapters a second copy of the model is held, to measure how far the first has moved. Returns the metrics of
    all_results.json, among them `eval_rewards/accuracies`, the share of held-out pairs that are told apart. Raises
    ImportError without TRL, ValueError or FileNotFoundError, naming the option or file, for what cannot be trained on.
    """
    if importlib.util.find_spec("trl") is None:
        raise ImportError("--task dpo needs TRL: pip install 'baichuan-hf[trl]'")
    from trl import DPOConfig, DPOTrainer

    check_output_dir(training_arguments, arguments)
    tokenizer = load_tokenizer(arguments)
    splits = with_eval_rows(load_train_and_test(arguments.train_file, arguments.eval_file), arguments)
    rows = DatasetDict({name: to_pairs(split, arguments.sources[name]) for name, split in splits.items()})

    load = functools.partial(
        load_model, AutoModelForCausalLM, training_arguments=training_arguments, tokenizer=tokenizer
    )
    shared = {field.name for field in dataclasses.fields(TrainingArguments) if field.init}
    settings = {name: getattr(training_arguments, name) for name in shared}
    model = load(arguments)
    # TRL takes every model whose config can ask for router logits for one that has routers.
    experts = getattr(model.config, "num_local_experts", 0)
    settings["router_aux_loss_coef"] = model.config.router_aux_loss_coef if experts else 0.0
    model = add_adapters(model, arguments, task_type="CAUSAL_LM")
    trainer = DPOTrainer(
        model=model,
        ref_model=None if arguments.peft else load(arguments),
        args=DPOConfig(**settings, beta=arguments.beta, max_length=arguments.max_length),
        train_dataset=rows["train"],
        eval_dataset=rows.get("test"),
        processing_class=tokenizer,
    )
    for patched in (model.get_base_model() if isinstance(model, PeftModel) else model, trainer.ref_model):
        if patched is not None:
            normalize_fused_head(trainer.accelerator.unwrap_model(patched))
    return train_and_save(trainer, arguments, load, pipeline_tag="text-generation")


def to_pairs(rows: Dataset, source: str) -> Dataset:
    """Columns `prompt`, `chosen` and `rejected`, each a list of messages.

    `chosen` and `rejected` are an answer each: text, a message, or a list of messages; the prompt is `prompt`, text or
    messages, or what `to_messages` takes.
    """

    def convert(row: dict[str, Any]) -> dict[str, list[Message]]:
        try:
            prompt = row["prompt"] if row.get("prompt") else to_messages({"output": "", **row})
            if isinstance(prompt, str):
                prompt = [{"role": "user", "content": prompt}]
            while prompt[-1]["role"] == "assistant":
                prompt = prompt[:-1]
            return {"prompt": prompt, "chosen": [_answer(row["chosen"])], "rejected": [_answer(row["rejected"])]}
        except (KeyError, IndexError, TypeError, ValueError) as error:
            reason = f"no column {error}" if isinstance(error, KeyError) else error
            raise ValueError(
                f"{source}: {reason}; a row needs `chosen` and `rejected`, and `prompt` or a conversation"
            ) from error

    return rows.map(convert, remove_columns=rows.column_names, desc="Reading pairs")


def _answer(answer: Any) -> Message:
    if isinstance(answer, list):
        answer = answer[-1]
    if isinstance(answer, dict):
        answer = answer["content"] if "content" in answer else answer["value"]
    return {"role": "assistant", "content": answer}
