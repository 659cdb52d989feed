"""The arguments of `--task classify`."""

import json
from dataclasses import dataclass

from ..arguments import TrainArguments, option


PROBLEM_TYPES = SINGLE, MULTI, REGRESSION = ("single_label_classification", "multi_label_classification", "regression")


@dataclass
class ClassifyArguments(TrainArguments):
    """What `--task classify` takes besides."""

    problem_type: str | None = option(
        f"One of {', '.join(PROBLEM_TYPES)}. Unset: that of a trained classifier, else several labels for a column of"
        " lists, regression for numbers that are not all whole, and one label for all else."
    )
    label_separator: str = option("With several labels in a column of text: what stands between them.", ",")
    few_shot: int | None = option(
        "Learn from this many examples in all, as many of each label, by the language model's own words: a prompt and"
        " a word for each label (pattern-exploiting training). 0: score the evaluation rows without training."
    )
    prompt_template: str | None = option(
        "With --few-shot: a text with {text} and {label}. Unset, for the labels positive and negative, one for reviews"
        " in the language of the texts; else the text, a line break, and the label."
    )
    verbalizer: str | None = option(
        "With --few-shot: the word for each label, as in `0=bad,1=good`, or as JSON. Unset: the labels themselves, or"
        " for positive and negative those of the default template."
    )
    calibrate: bool = option(
        "With --few-shot: subtract from each label's score its mean over the training texts, before any training;"
        " --no-calibrate does not.",
        True,
    )
    unlabeled_file: str | None = option(
        "More texts, in --text-column: train, give them labels, and train again on both (pseudo-labels)."
    )
    pseudo_label_threshold: float = option("Probability that a label given to one of them must reach.", 0.95)
    augment: list[str] | None = option(
        "Change the training texts anew in each epoch, by `delete`, `swap` or module:function, a function from text to"
        " text; several are applied in turn."
    )

    r_drop_alpha: float = option(
        "Weight of R-Drop: each row is passed twice under different dropout, and how far the two answers diverge is"
        " added to the loss. 0: not at all.",
        0.0,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.r_drop_alpha < 0:
            raise ValueError(f"--r-drop-alpha is {self.r_drop_alpha}; it must be 0 or more")
        if self.problem_type not in (None, *PROBLEM_TYPES):
            raise ValueError(f"--problem-type is {self.problem_type!r}; it must be one of {', '.join(PROBLEM_TYPES)}")
        if not self.label_separator:
            raise ValueError("--label-separator is empty; it must be what stands between two labels")
        if not 0.5 < self.pseudo_label_threshold <= 1:
            raise ValueError(
                f"--pseudo-label-threshold is {self.pseudo_label_threshold}; it must lie above 0.5, and be at most 1"
            )
        if self.few_shot is None:
            if self.prompt_template or self.verbalizer:
                raise ValueError("--prompt-template and --verbalizer are those of --few-shot, which is not given")
            return
        self.words()
        if self.r_drop_alpha:
            raise ValueError("--r-drop-alpha is for a head of its own, not for the words of --few-shot")
        if self.few_shot < 0:
            raise ValueError(f"--few-shot is {self.few_shot}; it must be 0 or more examples")
        if self.problem_type not in (None, SINGLE):
            raise ValueError(f"--few-shot scores one label for each text, but --problem-type is {self.problem_type}")
        if self.from_scratch:
            raise ValueError("--few-shot asks what a language model knows: with --from-scratch it knows nothing")
        if not self.few_shot and (self.peft or self.unlabeled_file or self.augment):
            raise ValueError(
                "--few-shot 0 trains nothing: leave out --lora, --qlora, --unlabeled-file and --augment, or give it"
                " some examples"
            )

    def words(self) -> dict[str, str] | None:
        """The words of --verbalizer by label. Raises ValueError for another form."""
        if self.verbalizer is None:
            return None
        if self.verbalizer.startswith("{"):
            try:
                return {str(label): str(word) for label, word in json.loads(self.verbalizer).items()}
            except json.JSONDecodeError as error:
                raise ValueError(f"--verbalizer: not valid JSON: {error}") from error
        words = {}
        for setting in self.verbalizer.split(","):
            label, separator, word = setting.partition("=")
            if not separator:
                raise ValueError(f"--verbalizer: {setting!r} is not of the form label=word")
            words[label.strip()] = word.strip()
        return words
