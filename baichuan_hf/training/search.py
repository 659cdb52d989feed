"""`--hp-search`: many short runs that differ in their arguments, by Trainer.hyperparameter_search."""

import copy
import dataclasses
import difflib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import SaveStrategy

from .arguments import TrainArguments
from .plot import plot_trials
from .record import chosen_arguments, write_arguments
from .watch import NonFiniteLossError


BEST_FILE = "best_arguments.yaml"


@dataclass(frozen=True)
class Choice:
    """One of several values."""

    values: list[Any]

    def suggest(self, trial: Any, name: str) -> Any:
        return trial.suggest_categorical(name, self.values)

    def distribution(self, tune: Any) -> Any:
        return tune.choice(self.values)


@dataclass(frozen=True)
class Range:
    """A number between two, both included; a whole one if both are whole."""

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError("low must be below high, and above 0 on a logarithmic scale")

    def suggest(self, trial: Any, name: str) -> Any:
        suggest = trial.suggest_int if self.whole else trial.suggest_float
        return suggest(name, self.low, self.high, log=self.log)

    def distribution(self, tune: Any) -> Any:
        if self.whole:
            return (tune.lograndint if self.log else tune.randint)(self.low, self.high + 1)
        return (tune.loguniform if self.log else tune.uniform)(self.low, self.high)

    @property
    def whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)


Space = dict[str, Choice | Range]


@dataclass(frozen=True)
class Trial:
    """What was tried, and what it gave; None if it was stopped or failed."""

    values: dict[str, Any]
    objective: float | None


def read_space(file: str) -> Space:
    """{learning_rate: {low: 1e-5, high: 1e-3, log: true}, per_device_train_batch_size: [8, 16]}, from a YAML file.

    Raises FileNotFoundError, or ValueError naming the argument.
    """
    try:
        lines = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"--hp-space {file}: not valid YAML: {error}") from error
    if not isinstance(lines, dict) or not lines:
        raise ValueError(
            f"--hp-space {file}: expected lines of `argument: [values]` or `argument: {{low: 1, high: 2}}`"
        )
    names = [field.name for field in dataclasses.fields(TrainingArguments) if field.init]
    space: Space = {}
    for name, values in lines.items():
        if name not in names:
            close = difflib.get_close_matches(str(name), names, n=1)
            meant = f"; did you mean {close[0]}?" if close else ""
            raise ValueError(f"--hp-space {file}: {name!r} is none of TrainingArguments{meant}")
        if isinstance(values, list) and values:
            space[name] = Choice([_number(value) for value in values])
            continue
        try:
            space[name] = Range(**{key: _number(value) for key, value in values.items()})
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(
                f"--hp-space {file}: {name} is {values!r}; give a list of values, or low, a higher high and, to draw"
                " from a logarithmic scale, log: true"
            ) from error
    return space


def _number(value: Any) -> Any:
    """YAML takes 1e-5, which has no point, for text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def search(trainer: Trainer, arguments: TrainArguments) -> dict[str, float]:
    """Try --hp-trials sets of arguments, each in a run from the same weights, and write the best into --output-dir.

    There it leaves best_arguments.yaml, which `baichuan-hf train` takes, trials.png, and the study itself, which goes
    on with the trials that are missing when it is started again. The measure is --metric-for-best-model. Returns its
    best value. Raises ImportError without the package that searches, ValueError for what cannot be searched.
    """
    args = trainer.args
    if trainer.eval_dataset is None:
        raise ValueError("--hp-search compares evaluations: give --eval-file, or an --eval-fraction")
    space = read_space(str(arguments.hp_space))
    metric = f"eval_{(args.metric_for_best_model or 'loss').removeprefix('eval_')}"
    direction = "maximize" if args.greater_is_better else "minimize"
    chosen = {name: value for name, value in chosen_arguments(arguments, args).items() if not name.startswith("hp_")}
    args.save_strategy = SaveStrategy.NO
    start = copy.deepcopy(trainer.model)

    def model_init() -> nn.Module:
        return copy.deepcopy(start)

    def objective(metrics: dict[str, float]) -> float:
        if metric not in metrics:
            raise ValueError(f"--metric-for-best-model {metric}: there is {', '.join(metrics)}")
        return metrics[metric]

    trainer.model_init = model_init
    run = {"optuna": _run_optuna, "ray": _run_ray}[str(arguments.hp_search)]
    trials = run(trainer, space, objective, direction, arguments.hp_trials)
    finished = [(trial.objective, trial.values) for trial in trials if trial.objective is not None]
    if not finished:
        raise ValueError(f"--hp-search: none of {len(trials)} trials came to an end; see what they wrote")
    best = (max if direction == "maximize" else min)(finished, key=lambda pair: pair[0])
    trainer.save_metrics("search", {metric: best[0]})
    if trainer.is_world_process_zero():
        folder = Path(str(args.output_dir))
        final = chosen | best[1] | {"output_dir": str(folder / "best")}
        write_arguments(folder / BEST_FILE, final, arguments.train_file)
        rows = [{**values, metric: objective} for objective, values in finished]
        plot_trials(rows, folder / "trials.png", metric=metric, best=finished.index(best))
    return {metric: best[0]}


def _run_optuna(
    trainer: Trainer, space: Space, objective: Callable[..., float], direction: str, count: int
) -> list[Trial]:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    folder = Path(str(trainer.args.output_dir))
    folder.mkdir(parents=True, exist_ok=True)
    storage = JournalStorage(JournalFileBackend(str(folder / "study.log")))
    options = {"study_name": "search", "storage": storage, "load_if_exists": True}
    study = optuna.create_study(direction=direction, **options)
    # Those that were cut off are tried no more, but count for nothing.
    done = sum(trial.state.is_finished() for trial in study.trials)
    trainer.accelerator.wait_for_everyone()
    if done < count:
        trainer.hyperparameter_search(
            hp_space=lambda trial: {name: values.suggest(trial, name) for name, values in space.items()},
            compute_objective=objective,
            n_trials=count - done,
            direction=direction,
            backend="optuna",
            # Of the same seed would come the same values again.
            sampler=optuna.samplers.TPESampler(seed=trainer.args.seed + done),
            catch=(NonFiniteLossError, torch.OutOfMemoryError),
            **options,
        )
    complete = optuna.trial.TrialState.COMPLETE
    return [Trial(trial.params, trial.value if trial.state == complete else None) for trial in study.trials]


def _run_ray(
    trainer: Trainer, space: Space, objective: Callable[..., float], direction: str, count: int
) -> list[Trial]:
    from ray import tune

    best = trainer.hyperparameter_search(
        hp_space=lambda trial: {name: values.distribution(tune) for name, values in space.items()},
        compute_objective=objective,
        n_trials=count,
        direction=direction,
        backend="ray",
        storage_path=str(Path(str(trainer.args.output_dir)).resolve()),
        name="study",
        resume="AUTO",
        raise_on_failed_trial=False,
    )
    return [Trial(trial.config, (trial.last_result or {}).get("objective")) for trial in best.run_summary.trials]


SEARCHERS = {"optuna": "Optuna", "ray": "Ray Tune"}


def check_search(arguments: TrainArguments) -> None:
    """Raises ValueError or ImportError, before any work is done, for a search that cannot be."""
    name = str(arguments.hp_search)
    if name not in SEARCHERS:
        raise ValueError(f"--hp-search {name!r}: unknown; there is {', '.join(SEARCHERS)}")
    if importlib.util.find_spec(name) is None:
        raise ImportError(f"--hp-search {name} needs {SEARCHERS[name]}: pip install 'baichuan-hf[{name}]'")
    if arguments.hp_space is None:
        raise ValueError("--hp-search needs --hp-space FILE.yaml, with what to try: `learning_rate: [1e-5, 1e-4]`")
    if arguments.early_stopping_patience:
        raise ValueError("--hp-search stops what is worse than the others itself: not with --early-stopping-patience")
    read_space(arguments.hp_space)
