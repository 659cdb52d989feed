"""Pushes to a stand-in for the Hub, which huggingface_hub takes for the real one, and loading from it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from tests.helpers import REPOSITORY
from tests.helpers.checkpoint import reviews, save_checkpoint, write_csv
from tests.helpers.hub import Hub, Repository, serve_hub


@pytest.fixture(scope="module")
def hub():
    with serve_hub() as hub:
        yield hub


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("push")
    save_checkpoint(folder / "rope", normalize_lm_head=True)
    save_checkpoint(folder / "alibi", position_embedding_type="alibi")
    write_csv(folder / "reviews.csv", reviews())
    return folder


def run(hub: Hub, folder: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A process that takes the stand-in for the Hub."""
    shared = {"PYTHONPATH": str(REPOSITORY), "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=hub.environment(folder / "home") | shared | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


PUSH = """
import baichuan_hf
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("rope")
tokenizer = AutoTokenizer.from_pretrained("rope")
for layout in ("baichuan", "remote_code", "llama"):
    name = layout.replace("_", "-")
    options = {"max_shard_size": "20KB", "tags": ["mine"], "private": True}
    model.push_to_hub(name, layout=layout, commit_message="Weights", **options)
    tokenizer.push_to_hub(name, layout=layout, commit_message="Tokenizer")
model.push_to_hub("tester/llama", revision="v2")
tokenizer.save_pretrained("saved", push_to_hub=True, repo_id="tokenizer-only", layout="remote_code")
model.add_adapter(LoraConfig(target_modules=["W_pack"]))
model.push_to_hub("injected")
"""
LOAD = """
import sys
sys.modules["baichuan_hf"] = None
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

for name, options in {"remote-code": {"trust_remote_code": True}, "llama": {}}.items():
    model = AutoModelForCausalLM.from_pretrained(f"tester/{name}", **options)
    tokenizer = AutoTokenizer.from_pretrained(f"tester/{name}", **options)
    ids = tokenizer("你好", return_tensors="pt")["input_ids"]
    print(type(model).__name__, round(model(ids).logits.float().sum().item()))
"""


@pytest.mark.slow
def test_all_layouts_arrive_and_load_elsewhere(hub, folder):
    pushed = run(hub, folder, "-c", PUSH)
    assert pushed.returncode == 0, pushed.stderr
    for name in ("baichuan", "remote-code", "llama"):
        repository = hub.repositories[f"tester/{name}"]
        files = repository.branches["main"]
        assert {path.name for path in (folder / "rope").iterdir()} - {"model.safetensors"} <= set(files)
        assert sum(file.startswith("model-") for file in files) > 1
        assert (repository.messages[:2], repository.private) == (["Weights", "Tokenizer"], True)
        assert ("modeling_baichuan.py" in files) == (name == "remote-code")
        card = ModelCard(files["README.md"].decode())
        assert card.data.tags == ["mine"]
    texts = {
        name: hub.repositories[f"tester/{name}"].branches["main"]["README.md"].decode()
        for name in ("baichuan", "remote-code", "llama")
    }
    assert "`import baichuan_hf`" in texts["baichuan"]
    assert "`trust_remote_code=True`" in texts["remote-code"]
    assert "nobody's code" in texts["llama"]
    # A branch of its own, in another layout than main.
    branches = hub.repositories["tester/llama"].branches
    assert [json.loads(branches[name]["config.json"])["model_type"] for name in ("main", "v2")] == [
        "llama",
        "baichuan",
    ]
    assert "tokenization_baichuan.py" in hub.repositories["tester/tokenizer-only"].branches["main"]

    injected = hub.repositories["tester/injected"].branches["main"]
    card = ModelCard(injected["README.md"].decode())
    assert "adapter_model.safetensors" in injected
    assert (card.data.base_model, card.data.library_name) == ("rope", "peft")
    assert "A PEFT adapter for `rope`" in card.text

    loaded = run(hub, folder, "-c", LOAD)
    assert loaded.returncode == 0, loaded.stderr
    (ours, total), (theirs, same) = (line.split() for line in loaded.stdout.splitlines())
    assert (ours, theirs) == ("BaichuanForCausalLM", "LlamaForCausalLM")
    assert abs(int(total) - int(same)) < 10


REFUSED = """
import baichuan_hf
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("alibi")
for repo_id, options in {
    "alibi": {"layout": "llama"},
    "somebody-else/model": {},
    "x": {"token": "hf_wrong"},
}.items():
    try:
        model.push_to_hub(repo_id, **options)
    except (ValueError, OSError) as error:
        print(" ".join(str(error).split()))
"""


def test_a_push_that_is_refused_says_why_and_leaves_nothing(hub, folder):
    before = set(hub.repositories)
    result = run(hub, folder, "-c", REFUSED)
    assert result.returncode == 0, result.stderr
    layout, rights, token = result.stdout.splitlines()
    assert "position_embedding_type='alibi' cannot become Llama" in layout
    assert "don't have the rights" in rights
    assert "somebody-else/model was not pushed. Log in with a token that may write there (hf auth login)" in rights
    assert "Invalid username or password" in token
    assert "x was not pushed. Log in" in token
    assert set(hub.repositories) == before


def test_a_push_without_network_says_what_to_do(hub, folder):
    code = "import baichuan_hf; from transformers import AutoModelForCausalLM as A\n"
    code += "A.from_pretrained('rope').push_to_hub('me/model')"
    result = run(hub, folder, "-c", code, HF_ENDPOINT="http://127.0.0.1:9")
    assert "me/model was not pushed, http://127.0.0.1:9 cannot be reached" in result.stderr
    assert "hf upload me/model FOLDER" in result.stderr


TRAIN = """
from baichuan_hf.training import parse_arguments, train

shared = "--task classify --train-file reviews.csv --text-column review --label-column stars --max-steps 2"
shared += " --use-cpu true --report-to none --push-to-hub true"
for words in (
    "--model tester/base --license mit --lora --output-dir adapter --hub-model-id tester/adapter",
    "--model tiny --layout llama --output-dir trained",
):
    train(*parse_arguments(f"{shared} {words}".split()))
"""


@pytest.mark.slow
def test_what_is_trained_is_pushed_with_its_card(hub, folder):
    base = {path.name: path.read_bytes() for path in (folder / "rope").iterdir()}
    hub.repositories["tester/base"] = Repository({"main": base})
    result = run(hub, folder, "-c", TRAIN)
    assert result.returncode == 0, result.stderr

    files = hub.repositories["tester/adapter"].branches["main"]
    expected = {"adapter_model.safetensors", "adapter_config.json", "base_config/config.json", "tokenizer.json"}
    assert expected <= set(files)
    card = ModelCard(files["README.md"].decode())
    assert (card.data.base_model, card.data.license, card.data.library_name) == ("tester/base", "mit", "peft")
    assert 'folder = "tester/adapter"' in card.text
    assert "load_adapted(folder, AutoModelForSequenceClassification)" in card.text
    assert "tester/base" in files["README.zh-CN.md"].decode()

    files = hub.repositories["tester/trained"].branches["main"]
    assert json.loads(files["config.json"])["architectures"] == ["LlamaForSequenceClassification"]
    assert "import baichuan_hf" not in files["README.md"].decode()
