"""The layouts that `save_pretrained` and `push_to_hub` write: who can load the files, and with what."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Literal, get_args

from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, HTTPError
from transformers.dynamic_module_utils import custom_object_save
from transformers.utils.hub import create_and_tag_model_card, hf_api


Layout = Literal["baichuan", "remote_code", "llama"]

# Whether this folder was loaded from beside a checkpoint, by `trust_remote_code=True`: then it is all that there is.
IS_REMOTE = __name__.startswith("transformers_modules.")

# Layouts of another class: what makes its model, without weights, and the weights to save with it. The package fills
# this in, which needs more for it than this folder.
CONVERSIONS: dict[Layout, Callable[[Any, Mapping[str, Any]], tuple[Any, dict[str, Any]]]] = {}

# What `save_pretrained(push_to_hub=True)` takes for the Hub.
HUB_OPTIONS = {"repo_id", "commit_message", "private", "revision", "create_pr", "commit_description", "tags"}

# What a repository without a card is told.
HOW_TO_LOAD: dict[Layout, str] = {
    "baichuan": "In the layout of Baichuan: transformers loads it after `import baichuan_hf`.",
    "remote_code": "In the layout of Baichuan with the code of `baichuan-hf` beside it: transformers loads it with"
    " `trust_remote_code=True`, or after `import baichuan_hf` without.",
    "llama": "In the layout of Llama: transformers loads it with nobody's code.",
}

ADAPTER = (
    "A PEFT adapter for `{base}`: load that model after `import baichuan_hf`, and put this on it by"
    " `PeftModel.from_pretrained`."
)

_layout: ContextVar[Layout | None] = ContextVar("layout", default=None)


@contextmanager
def save_layout(layout: Layout) -> Iterator[None]:
    """What is saved or pushed inside the block is in this layout, unless a call names another.

    For code that calls `save_pretrained` itself, such as Trainer:

    ```python
    with baichuan_hf.save_layout("remote_code"):
        trainer.push_to_hub()
    ```

    Args:
        layout: `"baichuan"`: the original layout, which loads after `import baichuan_hf`; the default.
            `"remote_code"`: the same with the model code beside it, which loads with `trust_remote_code=True` where
            the package is not installed. `"llama"`: transformers' own Llama, which needs nobody's code; for models
            with rotary positions. Checkpoints to resume from cannot be in it.

    Raises:
        ValueError: there is no such layout.
    """
    token = _layout.set(_checked(layout))
    try:
        yield
    finally:
        _layout.reset(token)


def layout_to_save(saved: Any, folder: str | os.PathLike, asked: Layout | None) -> Layout:
    """The layout in which a model or tokenizer is saved into `folder`: that which the call or the block around it asks
    for.

    Raises:
        ValueError: there is no such layout, or it cannot be written.
    """
    # The second is transformers' own switch, `register_for_auto_class`.
    by_itself: Layout = "remote_code" if IS_REMOTE or saved._auto_class is not None else "baichuan"
    layout = _checked(asked or _layout.get() or by_itself)
    if IS_REMOTE and layout != "remote_code":
        raise ValueError(
            f"layout={layout!r} needs the package, but this model was loaded as remote code: pip install baichuan-hf,"
            " import baichuan_hf, and load it again."
        )
    if asked is None and layout == "llama" and Path(folder).name.startswith("checkpoint-"):
        raise ValueError(
            f"{folder} is a checkpoint of Trainer, which could not resume from Llama's layout: put the block"
            ' `with save_layout("llama")` around trainer.push_to_hub() or save_model(), not around train().'
        )
    return layout


def _checked(layout: Layout) -> Layout:
    if layout not in get_args(Layout):
        raise ValueError(f"layout is {layout!r}; allowed are {', '.join(map(repr, get_args(Layout)))}.")
    return layout


def add_code(config_file: Path, code: type, auto_map: dict[str, Any]) -> None:
    """Put the module of the class `code`, with what it imports, beside `config_file`, and name it in there."""
    custom_object_save(code, config_file.parent)
    update_json(config_file, auto_map=auto_map)


def update_json(file: Path, **values: Any) -> None:
    """Set `values` in a JSON file as transformers writes them."""
    content = json.loads(file.read_text(encoding="utf-8")) | values
    file.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


class PushToHub:
    """`push_to_hub` that takes a layout and leaves nothing half-done."""

    def push_to_hub(
        self,
        repo_id: str,
        *,
        layout: Layout | None = None,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        max_shard_size: int | str = "50GB",
        tags: list[str] | None = None,
    ) -> Any:
        """As in transformers, but what cannot be saved leaves no empty repository behind; all files are one commit.

        Args:
            repo_id: `owner/name`, or a name under the owner of the token.
            layout: see `save_layout`.

        The others are those of transformers.

        Raises:
            ValueError: the model has no such layout.
            HfHubHTTPError: the Hub refuses, for want of rights for example; nothing is pushed.
            ConnectionError: it cannot be reached.
        """
        layout = layout_to_save(self, "", layout)
        with tempfile.TemporaryDirectory() as folder, explain_push_errors(repo_id):
            self.save_pretrained(folder, layout=layout, max_shard_size=max_shard_size)  # type: ignore[attr-defined]
            repo_id = hf_api().create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
            card = create_and_tag_model_card(repo_id, tags, token=token)
            if "[More Information Needed]" in card.text:
                # transformers' form with nothing filled in: there was no card.
                write_short_card(card, repo_id, Path(folder), layout)
            card.save(Path(folder) / "README.md")
            return self._upload_modified_files(  # type: ignore[attr-defined]
                folder,
                repo_id,
                files_timestamps={},
                commit_message=commit_message,
                commit_description=commit_description,
                token=token,
                create_pr=create_pr,
                revision=revision,
            )


def write_short_card(card: Any, repo_id: str, folder: Path, layout: Layout) -> None:
    """Say in `card` how to load what is in `folder`."""
    how_to_load = HOW_TO_LOAD[layout]
    adapter = folder / "adapter_config.json"
    if adapter.is_file():
        base = json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"]
        card.data.base_model, card.data.library_name = base, "peft"
        how_to_load = ADAPTER.format(base=base)
    card.text = f"\n# {repo_id.rpartition('/')[2]}\n\n{how_to_load}\n"


@contextmanager
def explain_push_errors(repo_id: str) -> Iterator[None]:
    """Say of a refusal or an error of the network what it hit and what to do."""
    try:
        yield
    except HfHubHTTPError as error:
        if error.response.status_code in (401, 403):
            error.append_to_message(
                f"\n{repo_id} was not pushed. Log in with a token that may write there (hf auth login), or push under"
                " your own name."
            )
        raise
    except HTTPError as error:
        raise ConnectionError(
            f"{repo_id} was not pushed, {constants.ENDPOINT} cannot be reached: {error}. Push again later, or save to"
            f" a folder and upload that: hf upload {repo_id} FOLDER"
        ) from error
