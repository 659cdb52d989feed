"""Tagging: `baichuan-hf train --task tag` beside a conditional random field over the words around, on the same rows.

    python -m baichuan_hf.benchmarks.tagging ROWS.csv baseline --task tag --train-file X.conll --eval-file Y.conll
    python -m baichuan_hf.benchmarks.tagging ROWS.csv full     --task tag --train-file X.conll --eval-file Y.conll ...

The words after the method's name are those of `baichuan-hf train`; one row is appended to ROWS.csv. Only the name
`baseline` means something: it uses none of the words but those that choose the rows, and needs sklearn-crfsuite. Its
penalties are chosen by cross-validation within the training rows.
"""

import itertools
import statistics
import sys
from pathlib import Path

from transformers import TrainingArguments

from ..training import TagArguments
from ..training.tasks.tag import Tags, load_tagged_sentences, tagging_metrics
from .runs import record_run


PENALTIES = {"c1": [0.0, 0.1, 0.3], "c2": [0.01, 0.1]}
FOLDS = 3


def crf_baseline(arguments: TagArguments, training_arguments: TrainingArguments) -> dict[str, float]:
    """Metrics on the rows that `train_tagger` evaluates on. Raises ImportError without sklearn-crfsuite."""
    try:
        import sklearn_crfsuite  # noqa: F401
    except ImportError as error:
        raise ImportError("the baseline needs sklearn-crfsuite: pip install 'baichuan-hf[bench]'") from error
    rows, _ = load_tagged_sentences(arguments)
    words, tags = {}, {}
    for split in ("train", "test"):
        words[split], tags[split] = list(rows[split]["words"]), list(rows[split]["tags"])
    grid = [dict(zip(PENALTIES, values, strict=True)) for values in itertools.product(*PENALTIES.values())]
    best = max(grid, key=lambda penalties: _cross_validate(words["train"], tags["train"], penalties))
    print("chosen:", best)
    predicted = _predict(words["train"], tags["train"], words["test"], best)
    return {f"eval_{name}": value for name, value in tagging_metrics(tags["test"], predicted).items()}


def features(words: list[str], place: int) -> dict[str, str]:
    """The word, its four neighbours, and the pairs and the three that it is part of."""
    padded = ["<<", "<", *words, ">", ">>"]
    before2, before, word, after, after2 = padded[place : place + 5]
    return {
        "-2": before2,
        "-1": before,
        "0": word,
        "+1": after,
        "+2": after2,
        "-2-1": before2 + before,
        "-1,0": before + word,
        "0+1": word + after,
        "+1+2": after + after2,
        "-1,0+1": before + word + after,
        "digit": str(word.isdigit()),
    }


def _predict(words: Tags, tags: Tags, unseen: Tags, penalties: dict[str, float]) -> Tags:
    from sklearn_crfsuite import CRF

    model = CRF(algorithm="lbfgs", max_iterations=100, all_possible_transitions=True, **penalties)
    model.fit([[features(row, place) for place in range(len(row))] for row in words], tags)
    return [
        list(row) for row in model.predict([[features(row, place) for place in range(len(row))] for row in unseen])
    ]


def _cross_validate(words: Tags, tags: Tags, penalties: dict[str, float]) -> float:
    scores = []
    for fold in range(FOLDS):
        learnt = [index for index in range(len(words)) if index % FOLDS != fold]
        held_out = range(fold, len(words), FOLDS)
        predicted = _predict(
            [words[index] for index in learnt],
            [tags[index] for index in learnt],
            [words[index] for index in held_out],
            penalties,
        )
        scores.append(tagging_metrics([tags[index] for index in held_out], predicted)["f1"])
    return statistics.fmean(scores)


if __name__ == "__main__":
    results, method, *words = sys.argv[1:]
    record_run(Path(results), method, words, baseline=crf_baseline, metrics=("precision", "recall", "f1"))
