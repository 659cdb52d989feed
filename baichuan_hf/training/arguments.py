"""What every task of `baichuan-hf train` takes besides transformers' TrainingArguments."""

from dataclasses import dataclass, field
from typing import Any, Literal

import yaml
from transformers import Trainer


def option(help: str, default: Any = None) -> Any:
    """A field of an arguments class, with its text for --help."""
    return field(default=default, metadata={"help": help})


@dataclass
class TrainArguments:
    """What every task takes; a task may add arguments of its own in a subclass."""

    task: str = field(metadata={"help": "What to train for."})
    train_file: str = field(
        metadata={"help": "csv, json, jsonl, parquet or txt file, folder, or data set on the Hub."}
    )
    model: str = option("Folder or Hub name of the model to start from, or `tiny`, the one that is bundled.", "tiny")
    from_scratch: bool = option(
        "Start from random weights; --model is then a preset, or a folder or Hub name whose config is taken.", False
    )
    config_overrides: str | None = option(
        "Fields of the model's config to set, as in `hidden_dropout=0.1,attention_dropout=0.1`."
    )
    eval_file: str | None = option("The like of --train-file, to evaluate on.")
    eval_fraction: float = option(
        "Share of the training rows to evaluate on when there is no --eval-file; stratified, the same in every run.",
        0.2,
    )
    streaming: bool = option(
        "Read the training rows while training, never all of them; needs --max-steps. For pretrain, mlm and sft.",
        False,
    )
    shuffle_buffer: int = option("With --streaming: rows among which the next is drawn.", 10_000)
    preprocessing_num_workers: int | None = option("Processes that tokenize the rows of pretrain, mlm and sft.")
    text_column: str = option("Column with the text.", "text")
    label_column: str = option("Column with the label.", "label")
    max_length: int = option("Longer texts are cut to this many tokens.", 512)
    lora: bool = option("Train LoRA adapters and the head instead of all weights (PEFT).", False)
    qlora: bool = option("The same over a base model quantised to 4 bits (bitsandbytes nf4).", False)
    lora_r: int = option("Rank of the adapters.", 16)
    lora_alpha: int = option("The update is scaled by this over the rank.", 32)
    lora_dropout: float = option("Dropout in front of the adapters.", 0.05)
    lora_target_modules: list[str] | None = option(
        "Modules that get adapters, or `all-linear`; unset: PEFT's default for the model (Baichuan: W_pack)."
    )
    merge: bool = option(
        "With --lora or --qlora: also save the merged model, to OUTPUT_DIR/merged. The adapter alone is loaded by"
        " baichuan_hf.adapters.loading.load_adapted(OUTPUT_DIR, AutoModelFor...).",
        False,
    )
    layout: Literal["baichuan", "remote_code", "llama"] = option(
        "Of the model that is saved at the end: the original one, the same with the code beside it for people without"
        " this package, or Llama's. With --lora and --qlora that of the merged model.",
        "baichuan",
    )
    license: str | None = option(
        "Identifier of the licence of what is trained, for its card; unset: that of --model, where it is known."
    )
    early_stopping_patience: int | None = option(
        "Stop when so many evaluations in a row were no better; needs --load-best-model-at-end and --eval-strategy."
    )
    lr_step_size: int | None = option(
        "Multiply the learning rate by --lr-step-gamma every so many steps (torch's StepLR), in place of"
        " --lr-scheduler-type."
    )
    lr_step_gamma: float = option("See --lr-step-size.", 0.1)
    hp_search: str | None = option(
        "Search for the best arguments by `optuna` or `ray`, and write them to OUTPUT_DIR/best_arguments.yaml. Started"
        " again, it goes on with the trials that are missing."
    )
    hp_space: str | None = option(
        "With --hp-search: YAML file with what to try, as in `learning_rate: {low: 1e-5, high: 1e-3, log: true}` and"
        " `per_device_train_batch_size: [8, 16]`."
    )
    hp_trials: int = option("With --hp-search: how many sets of arguments to try.", 20)
    tensor_parallel_size: int = option(
        "Divide every matrix among this many processes of `accelerate launch` or `torchrun`; the others take shares of"
        " the batch. Needs --save-only-model true: such runs cannot be resumed yet.",
        1,
    )

    qat: bool = option(
        "Train for 4 bits: linear layers compute as if their weights had 4 and their inputs 8 (torchao).", False
    )
    qat_group_size: int = option("Weights that share a scale, with --qat.", 32)
    keep_zeros: bool = option("Weights that are zero stay zero, as those of a pruned model.", False)

    def __post_init__(self) -> None:
        if self.tensor_parallel_size > 1 and (self.from_scratch or self.peft):
            raise ValueError("--tensor-parallel-size divides trained weights: not --from-scratch, --lora or --qlora")
        if self.peft and (self.keep_zeros or self.qat):
            given = "--keep-zeros" if self.keep_zeros else "--qat"
            raise ValueError(f"{given} is about weights that are trained: those under --lora and --qlora are not")
        if self.merge and not self.peft:
            raise ValueError("--merge folds adapters into the model: it needs --lora or --qlora")
        if self.layout != "baichuan" and self.peft and not self.merge:
            raise ValueError(f"--layout {self.layout} is for a whole model: with --lora and --qlora it needs --merge")
        if self.layout == "llama" and self.tensor_parallel_size > 1:
            raise ValueError("--layout llama needs the whole model: with --tensor-parallel-size convert it afterwards")
        if self.license == "other":
            raise ValueError(
                "--license other: give license, license_name and license_link in the head of the README.md of --model"
            )
        if self.from_scratch and self.peft:
            raise ValueError("--lora and --qlora adapt trained weights: with --from-scratch there are none")
        if self.max_length < 1:
            raise ValueError(f"--max-length is {self.max_length}; it must be at least 1")

    @property
    def sources(self) -> dict[str, str]:
        """Where the rows of each split come from, to name in messages."""
        return {"train": self.train_file, "test": self.eval_file or self.train_file}

    @property
    def peft(self) -> bool:
        return self.lora or self.qlora

    @property
    def preset_tokenizer(self) -> str:
        """Folder or Hub name of the tokenizer that a preset takes, which has none of its own."""
        return "tiny"

    def prepare_trainer(self, trainer: Trainer) -> None:
        """Called before the training begins; a task may change how the loss is computed, or add callbacks."""

    def config_values(self) -> dict[str, Any]:
        """The fields of --config-overrides with their values, read as YAML."""
        values = {}
        for setting in (self.config_overrides or "").split(","):
            name, separator, value = setting.partition("=")
            if separator:
                values[name.strip()] = yaml.safe_load(value)
            elif setting:
                raise ValueError(f"--config-overrides: {setting!r} is not of the form field=value")
        return values
