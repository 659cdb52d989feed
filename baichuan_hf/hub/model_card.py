"""Model cards in English and Chinese, rendered from data: one YAML file for each model, one template for all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..checkpoints import bundled_checkpoint


Language = Literal["en", "zh"]

# The Hub shows the first; each points at the other.
CARD_FILES: dict[Language, str] = {"en": "README.md", "zh": "README.zh-CN.md"}
# In the folder of a bundled checkpoint, or of a run.
DATA_FILE = "card.yaml"

TEMPLATE = Path(__file__).parent / "card.md.jinja"
CARDS = Path(__file__).parent / "cards"
BUNDLED = ("tiny", "tiny-alibi")


def list_cards() -> list[str]:
    """The models that `load_card` knows by name: the published ones and the bundled ones."""
    return sorted(path.stem for path in CARDS.glob("*.yaml")) + list(BUNDLED)


def published_card(model: str) -> dict[str, Any]:
    """The data of the card of a published model, by its name on the Hub; {} if it is another."""
    name = model.removeprefix("baichuan-inc/")
    return load_card(name) if name != model and name in list_cards() else {}


def load_card(source: str) -> dict[str, Any]:
    """The data of a card: of a model by name, or from a YAML file or a folder that holds `card.yaml`.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file does not hold fields.
    """
    if source in BUNDLED:
        file = bundled_checkpoint(source) / DATA_FILE
    elif source in list_cards():
        file = CARDS / f"{source}.yaml"
    else:
        file = Path(source) / DATA_FILE if Path(source).is_dir() else Path(source)
    if not file.is_file():
        raise FileNotFoundError(
            f"{file}: no such file, and no model with a card; those are {', '.join(list_cards())}."
        )
    data = yaml.safe_load(file.read_text(encoding="utf-8"))
    if not isinstance(data, dict) or not isinstance(data.get("metadata"), dict) or "name" not in data:
        raise ValueError(f"{file} holds no card: it needs the fields `name` and `metadata`.")
    return data


def render_card(data: Mapping[str, Any], language: Language = "en") -> ModelCard:
    """The card in one language.

    A text of `data` is a string, or one for each language under `en` and `zh`.

    Args:
        data: `name`; `metadata` as in the head of a card on the Hub; `summary`; `conditions` of the licence: `quote`
            and `source`; `usage`: Python code; `results`: rows with the fields of `huggingface_hub.EvalResult`, which
            become `model-index`, and `note`; `sections` with `title` and any of `text`, `table`, `after` and `code`;
            `sources`. A table has `columns`, `rows`, and in `words` the numbers of the columns that are aligned left.
        language: of what is read; the head is the same.

    Raises:
        ValueError: there is no licence, or of one that the Hub does not know no name and link.
    """
    name, metadata = data["name"], data["metadata"]
    check_license(name, metadata)
    rows = data.get("results", [])
    results = [EvalResult(**{key: row[key] for key in row if key != "note"}) for row in rows]
    card_data = ModelCardData(**metadata, **({"model_name": name, "eval_results": results} if results else {}))

    def say(text: Any, chinese: str | None = None) -> str:
        if chinese is not None:
            text = {"en": text, "zh": chinese}
        return str(text[language] if isinstance(text, Mapping) else text)

    return ModelCard.from_template(
        card_data,
        template_path=str(TEMPLATE),
        **{"conditions": None, "usage": None, "results": [], "sections": [], "sources": []} | dict(data),
        language=language,
        other_file=CARD_FILES["zh" if language == "en" else "en"],
        say=say,
    )


def check_license(name: str, metadata: Mapping[str, Any]) -> None:
    """Raise ValueError for a card that does not say what may be done with the weights."""
    if not metadata.get("license"):
        raise ValueError(
            f"The card of {name} has no licence: give metadata.license, an identifier of the Hub such as apache-2.0,"
            " or `other` with license_name and license_link."
        )
    if metadata["license"] == "other":
        for field in ("license_name", "license_link"):
            if not metadata.get(field):
                raise ValueError(f"The card of {name} has license `other`, so metadata.{field} must say which.")


def write_cards(data: Mapping[str, Any], folder: Path) -> None:
    """Write the card into `folder` in each language. Raises ValueError as `render_card`."""
    cards = {file: render_card(data, language) for language, file in CARD_FILES.items()}
    folder.mkdir(parents=True, exist_ok=True)
    for file, card in cards.items():
        card.save(folder / file)


def save_card(data: Mapping[str, Any], folder: Path) -> None:
    """The same, with the data beside, to change and render again."""
    write_cards(data, folder)
    text = yaml.dump(dict(data), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    (folder / DATA_FILE).write_text(text, encoding="utf-8")


class _Dumper(yaml.SafeDumper):
    """Writes the lines of a text as lines, without anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)
