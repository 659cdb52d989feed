"""Text classification: `baichuan-hf train --task classify` beside a bag of character n-grams, on the same rows.

    python -m baichuan_hf.benchmarks.classification ROWS.csv baseline --task classify --train-file X.csv ...
    python -m baichuan_hf.benchmarks.classification ROWS.csv full     --task classify --train-file X.csv ...

The words after the method's name are those of `baichuan-hf train`; one row is appended to ROWS.csv. Only the name
`baseline` means something: it uses none of the words but those that choose the rows (with --few-shot also the same
examples, by --seed), and is TF-IDF of character n-grams and logistic regression, with settings chosen by
cross-validation within the training rows. It needs scikit-learn.
"""

import sys
from pathlib import Path

from transformers import TrainingArguments

from ..training import ClassifyArguments
from ..training.tasks.labelled_texts import choose_examples, load_labelled_texts
from .runs import record_run


GRID = {
    "vectorize__ngram_range": [(1, 2), (1, 3), (1, 4)],
    "vectorize__min_df": [1, 2],
    "classify__C": [1, 3, 10, 30],
    "classify__class_weight": [None, "balanced"],
}


def tfidf_baseline(arguments: ClassifyArguments, training_arguments: TrainingArguments) -> dict[str, float]:
    """Metrics on the rows that `train_classifier` evaluates on. Raises ImportError without scikit-learn."""
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.metrics import accuracy_score, f1_score
        from sklearn.model_selection import GridSearchCV
        from sklearn.pipeline import Pipeline
    except ImportError as error:
        raise ImportError("the baseline needs scikit-learn: pip install 'baichuan-hf[bench]'") from error
    rows = load_labelled_texts(arguments)
    if arguments.few_shot:
        rows["train"] = choose_examples(rows["train"], arguments.few_shot, seed=training_arguments.seed)
    steps = [
        ("vectorize", TfidfVectorizer(analyzer="char", sublinear_tf=True)),
        ("classify", LogisticRegression(max_iter=1000, solver="liblinear")),
    ]
    search = GridSearchCV(Pipeline(steps), GRID, scoring="accuracy", cv=5, n_jobs=-1)
    search.fit(rows["train"]["text"][:], rows["train"]["label"][:])
    labels, predicted = rows["test"]["label"][:], search.predict(rows["test"]["text"][:])
    print("chosen:", search.best_params_)
    return {
        "eval_accuracy": accuracy_score(labels, predicted),
        "eval_f1_macro": f1_score(labels, predicted, average="macro"),
    }


if __name__ == "__main__":
    results, method, *words = sys.argv[1:]
    record_run(Path(results), method, words, baseline=tfidf_baseline, metrics=("accuracy", "f1_macro"))
