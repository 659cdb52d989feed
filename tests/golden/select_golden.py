"""Makes the selection in this folder from the full golden data: python tests/golden/select_golden.py ../shared/golden.

What it leaves out: the weights of three families, which tests/helpers/golden.py draws again from their seed (this
script requires the sha256 of every one to be the original's); the logits of all but the first words; the second copy
of the slopes; the chat cases that repeat another with a length a little different or need the real Baichuan2
tokenizer; the real Baichuan2 tokenizer itself.
"""

import json
import shutil
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file


HERE = Path(__file__).parent
WORDS = 96
LIMIT = 3_000_000
COPIED = ["config.json", "generation_config.json", "expected.json", "pytorch_model.bin.index.json"]
# From one family each: a weight file as the original wrote it, and the slopes, which both ALiBi families share.
COPIED_FROM = {"baichuan-7b": ["pytorch_model.bin"], "baichuan-13b": ["slopes.json"]}

sys.path.insert(0, str(HERE.parents[1]))
from tests.helpers.golden import GOLDEN_FAMILIES, draw_weights, sha256  # noqa: E402


def check_weights(family: Path) -> None:
    facts = json.loads((family / "expected.json").read_text())
    weights = draw_weights(facts, json.loads((family / "config.json").read_text()))
    different = [name for name, spec in facts["state_dict"].items() if sha256(weights[name]) != spec["sha256"]]
    if different:
        raise SystemExit(f"{family.name}: drawn from the seed, these weights are not the original's: {different}")


def representative(cases: list[dict]) -> list[dict]:
    """One case in three of each name, and every error."""
    seen: dict[str, int] = {}
    chosen = []
    for case in cases:
        rank = seen[case["name"]] = seen.get(case["name"], -1) + 1
        if rank % 3 == 0 or (case["error"] and rank == 0):
            chosen.append(case)
    return chosen


def select_family(source: Path, destination: Path) -> None:
    check_weights(source)
    destination.mkdir(exist_ok=True)
    for name in COPIED + COPIED_FROM.get(source.name, []):
        if (source / name).exists():
            shutil.copyfile(source / name, destination / name)
    tensors = load_file(source / "expected.safetensors")
    save_file(
        {name: (x[..., :WORDS] if "logits" in name else x).contiguous() for name, x in tensors.items()},
        destination / "expected.safetensors",
    )
    chat = source / "chat.json"
    if chat.exists() and json.loads(chat.read_text())["tokenizer"] == "baichuan-surrogate":
        content = json.loads(chat.read_text())
        content["cases"] = representative(content["cases"])
        (destination / "chat.json").write_text(json.dumps(content, ensure_ascii=True) + "\n")


def main(source: Path) -> None:
    for family in GOLDEN_FAMILIES:
        select_family(source / family, HERE / family)
    tokenizer = HERE / "tokenizers" / "baichuan-surrogate"
    tokenizer.mkdir(parents=True, exist_ok=True)
    for file in (source / "tokenizers" / "baichuan-surrogate").iterdir():
        shutil.copyfile(file, tokenizer / file.name)
    size = sum(file.stat().st_size for file in HERE.rglob("*") if file.is_file() and file.suffix != ".pyc")
    print(f"{size / 1e6:.2f} MB")
    if size > LIMIT:
        raise SystemExit(f"the selection is larger than {LIMIT / 1e6:.0f} MB")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else HERE.parents[2] / "shared" / "golden"))
