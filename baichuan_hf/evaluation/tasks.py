"""Tasks of lm-evaluation-harness, by its own `hf` model: published benchmarks, and those of local files."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase


def find_tasks(tasks: Sequence[str], include_path: str | None = None) -> Any:
    """lm-eval's `TaskManager`, which knows all these tasks; it looks through all of lm-eval's, for some seconds.

    Args:
        tasks: names of tasks or groups, with wildcards.
        include_path: a folder of YAML files with tasks of one's own.

    Raises:
        ImportError: lm-eval is not installed.
        FileNotFoundError: there is no such folder.
        ValueError: a task is unknown.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ImportError(f"--task needs lm-evaluation-harness: pip install 'baichuan-hf[eval]' ({error})") from error
    if include_path is not None and not Path(include_path).is_dir():
        raise FileNotFoundError(f"--include-path {include_path!r}: no such folder; it holds the YAML files of tasks")
    manager = TaskManager(include_path=include_path)
    for task in tasks:
        if not manager.match_tasks([task]):
            near = difflib.get_close_matches(task, manager.all_tasks, n=5)
            own = f" nor of {include_path}" if include_path else ""
            hint = f"; near are {', '.join(near)}" if near else ""
            raise ValueError(
                f"--task {task!r} is no task of lm-eval{own}{hint}. `lm-eval ls tasks` lists them; --include-path"
                " adds a folder of your own."
            )
    return manager


def run_tasks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    *,
    manager: Any = None,
    num_fewshot: int | None = None,
    limit: int | None = None,
    batch_size: int = 1,
    apply_chat_template: bool = False,
    confirm_run_unsafe_code: bool = False,
) -> dict[str, Any]:
    """What `lm_eval.simple_evaluate` returns: `results` by task, `groups`, `n-shot`, `versions`, `config` and more.

    Args:
        model: a causal language model.
        tokenizer: that of the model.
        tasks: as for `find_tasks`.
        manager: what it returned; None: look for them now, among those of lm-eval.
        num_fewshot: solved examples before each question; None: as the task says.
        limit: take so many questions of each task.
        batch_size: texts at once.
        apply_chat_template: ask as in a conversation.
        confirm_run_unsafe_code: run the code that the model writes, where a task scores it so.

    Raises:
        ImportError: lm-eval is not installed.
        ValueError: a task is unknown.
    """
    manager = manager or find_tasks(tasks)
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    kept = model.generation_config
    # A task says how to write its answers. What a checkpoint sets besides would count too: a repetition penalty, and
    # max_new_tokens, which goes before the harness's max_length.
    ids = {name: getattr(kept, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model.generation_config = GenerationConfig(**ids)
    try:
        return simple_evaluate(
            HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch_size),
            tasks=manager.match_tasks(list(tasks)),
            num_fewshot=num_fewshot,
            limit=limit,
            apply_chat_template=apply_chat_template,
            confirm_run_unsafe_code=confirm_run_unsafe_code,
            log_samples=False,
            task_manager=manager,
        )
    finally:
        model.generation_config = kept
