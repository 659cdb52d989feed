"""The shape of the repository: who may import whom, what ships, what users see."""

import ast
import dataclasses
import inspect
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import typer

import baichuan_hf
from baichuan_hf.cli.main import app
from baichuan_hf.training import TrainArguments
from tests.helpers import REPOSITORY


PACKAGE = REPOSITORY / "baichuan_hf"
MODULES = sorted(PACKAGE.rglob("*.py"))
MODEL_FILES = sorted((PACKAGE / "model").glob("*.py"))

# Rank of each folder: a module may import its own folder and those of lower rank. "" is baichuan_hf/__init__.py.
LAYERS = {
    **dict.fromkeys(("model", "checkpoints"), 0),
    **dict.fromkeys(("hub", "data", "conversion"), 1),
    "adapters": 2,
    "": 3,
    **dict.fromkeys(("evaluation", "inference", "pruning"), 4),
    **dict.fromkeys(("training", "export", "serving"), 5),
    **dict.fromkeys(("checking", "quantization"), 6),
    "benchmarks": 7,
    "cli": 8,
}
# The same for the files of model/; one that is not named is a family of components.
MODEL_RANKS = {
    "presets": 0,
    "configuration_baichuan": 1,
    "attention": 3,
    **dict.fromkeys(("linear_attention", "window_attention"), 4),
    "attention_types": 5,
    **dict.fromkeys(("initialization", "layers"), 6),
    **dict.fromkeys(("decoding", "weight_only"), 7),
    "modeling_baichuan": 8,
    "registration": 9,
}
FAMILY_RANK = 2

TOP_LEVEL = {
    "CHANGELOG.md",
    "LICENSE",
    "Makefile",
    "README.md",
    "README.zh-CN.md",
    "baichuan_hf",
    "docs",
    "model_cards",
    "notebooks",
    "pyproject.toml",
    "tests",
}

SAMPLING = {"--do-sample", "--no-do-sample", "--temperature", "--top-k", "--top-p", "--repetition-penalty"}
RUNNING = {"--model", "--dtype", "--device", "--seed", "--max-new-tokens"}
# What a user may have in a script: to take one away is a breaking change.
CLI_OPTIONS = {
    "bench architectures": {
        "--axis",
        "--batch-size",
        "--deep-layers",
        "--device",
        "--hidden-size",
        "--learning-rate",
        "--length",
        "--max-seconds",
        "--num-hidden-layers",
        "--picture",
        "--rounds",
        "--rows",
        "--seeds",
        "--steps",
        "--train-file",
        "--workers",
    },
    "bench assisted": {"--device", "--model", "--new-tokens", "--prompt-tokens", "--rounds", "--rows", "--shape"},
    "bench attention": {"--device", "--head-dim", "--heads", "--rounds", "--rows", "--tokens"},
    "bench batching": {
        "--attention",
        "--cuda-graph",
        "--device",
        "--model",
        "--new-tokens",
        "--prompt-tokens",
        "--requests",
        "--rounds",
        "--rows",
        "--shape",
    },
    "bench cpu": {"--peer", "--rounds", "--rows", "--shape"},
    "bench decode": {
        "--batch-size",
        "--device",
        "--model",
        "--new-tokens",
        "--picture",
        "--profile",
        "--prompt-tokens",
        "--rounds",
        "--rows",
        "--shape",
        "--way",
    },
    "bench load": {"--device", "--model", "--rounds", "--rows", "--shape"},
    "bench loss": {"--device", "--hidden-size", "--rounds", "--rows", "--tokens", "--vocab-size"},
    "bench memory": {
        "--case",
        "--device",
        "--picture",
        "--positions",
        "--rounds",
        "--rows",
        "--shape",
        "--tokens",
    },
    "bench parallel": {"--batch-size", "--device", "--length", "--processes", "--rows", "--shape", "--steps", "--way"},
    "bench prefill": {
        "--batch-size",
        "--device",
        "--model",
        "--picture",
        "--profile",
        "--rounds",
        "--rows",
        "--shape",
        "--tokens",
    },
    "bench quantization": {
        "--device",
        "--eval-file",
        "--group-size",
        "--head",
        "--method",
        "--model",
        "--new-tokens",
        "--rounds",
        "--rows",
        "--shape",
        "--static",
        "--text-file",
    },
    "bench ratio": {"--before", "--device", "--label", "--rounds", "--rows", "--shape"},
    "bench scaling": {"--device", "--kind", "--picture", "--rounds", "--rows", "--tokens"},
    "bench start": {"--device", "--model", "--rows", "--shape", "--way"},
    "bench tokenizer": {"--megabytes", "--model", "--rounds", "--rows", "--text-file"},
    "bench train": {"--at-once", "--batch-size", "--case", "--device", "--length", "--rounds", "--rows", "--shape"},
    "card": {"source", "--language", "--license", "--output-dir"},
    "chat": {"--system"} | RUNNING | SAMPLING,
    "check": {"folder", "--device", "--generate", "--json", "--no-generate"},
    "convert": {
        "source",
        "destination",
        "--adapter",
        "--base",
        "--dtype",
        "--max-shard-size",
        "--overwrite",
        "--quantize",
        "--rank",
        "--remote-code",
        "--to",
        "--vocab-size",
    },
    "demo": {"--model", "--output-dir", "--seed"},
    "eval": {
        "model",
        "--apply-chat-template",
        "--batch-size",
        "--confirm-run-unsafe-code",
        "--device",
        "--dtype",
        "--include-path",
        "--json",
        "--length",
        "--limit",
        "--num-fewshot",
        "--task",
        "--text-column",
        "--text-file",
    },
    "export": {"source", "destination", "--cache", "--dtype", "--no-cache", "--overwrite", "--to"},
    "generate": {"prompt", "--num-beams"} | RUNNING | SAMPLING,
    "info": {"model", "--batch-size", "--length", "--dtype", "--lora-r", "--json"},
    "merge": {
        "adapter",
        "destination",
        "--base",
        "--dtype",
        "--layout",
        "--max-shard-size",
        "--overwrite",
    },
    "prune": {
        "source",
        "destination",
        "--heads",
        "--label-column",
        "--layers",
        "--max-length",
        "--pattern",
        "--rows",
        "--sparsity",
        "--text-column",
        "--text-file",
    },
    "quantize": {
        "source",
        "destination",
        "--device",
        "--dtype",
        "--group-size",
        "--head",
        "--method",
        "--overwrite",
        "--rows",
        "--text-column",
        "--text-file",
    },
    "serve": set(),  # those of transformers
    "train": {"--help-all", "--launch-config"},
}
TRAIN_ARGUMENTS = {
    "config_overrides",
    "early_stopping_patience",
    "eval_file",
    "eval_fraction",
    "from_scratch",
    "hp_search",
    "hp_space",
    "hp_trials",
    "keep_zeros",
    "label_column",
    "layout",
    "license",
    "lora",
    "lora_alpha",
    "lora_dropout",
    "lora_r",
    "lora_target_modules",
    "lr_step_gamma",
    "lr_step_size",
    "max_length",
    "merge",
    "model",
    "preprocessing_num_workers",
    "qat",
    "qat_group_size",
    "qlora",
    "shuffle_buffer",
    "streaming",
    "task",
    "tensor_parallel_size",
    "text_column",
    "train_file",
}


def package_imports(file: Path) -> Iterator[str]:
    """The modules of this package that `file` imports anywhere, as dotted names."""
    here = file.relative_to(REPOSITORY).parent.parts
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = here[: len(here) - node.level + 1] if node.level else ()
            source = ".".join((*parents, *filter(None, [node.module])))
            members = [f"{source}.{alias.name}" for alias in node.names]
            names = [member if is_module(member) else source for member in members]
        else:
            continue
        yield from (name for name in names if name.partition(".")[0] == "baichuan_hf")


def is_module(name: str) -> bool:
    path = REPOSITORY.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_modules_import_only_lower_layers(file):
    folder = "" if file.parent == PACKAGE else file.relative_to(PACKAGE).parts[0]
    for name in package_imports(file):
        target = name.split(".")[1] if "." in name else ""
        assert target == folder or LAYERS[target] < LAYERS[folder], f"{file} imports {name}"


@pytest.mark.parametrize("file", MODEL_FILES, ids=lambda file: file.stem)
def test_model_folder_imports_only_siblings(file):
    """A push to the Hub carries siblings only. Its scanner is a pattern like this one, which reads docstrings too."""
    siblings = {"." + sibling.stem for sibling in MODEL_FILES}
    for target in re.findall(r"^\s*(?:from|import)\s+(\.\S*|baichuan_hf\S*)", file.read_text(), re.MULTILINE):
        assert target in siblings, f"{file.name} imports {target}: it would not load from the Hub"


@pytest.mark.parametrize("file", MODEL_FILES, ids=lambda file: file.stem)
def test_model_folder_imports_components_in_order(file):
    own_rank = MODEL_RANKS.get(file.stem, FAMILY_RANK)
    for name in package_imports(file):
        sibling = name.rpartition(".")[2]
        assert MODEL_RANKS.get(sibling, FAMILY_RANK) <= own_rank, f"{file.stem} imports {sibling}"


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_module_size(file):
    budget = 900 if file.name == "modeling_baichuan.py" else 600
    assert len(file.read_text().splitlines()) <= budget


def test_public_names_are_listed_and_sorted():
    internal = {"register", "register_adapters", "register_layout"}  # called once, on import
    public = {name for name, value in vars(baichuan_hf).items() if not isinstance(value, ModuleType)}
    assert set(baichuan_hf.__all__) == {name for name in public if not name.startswith("_")} - internal
    classes = [name for name in baichuan_hf.__all__ if name[0].isupper()]
    assert baichuan_hf.__all__ == sorted(classes) + sorted(set(baichuan_hf.__all__) - set(classes))


def test_import_loads_nothing_that_transformers_would_not():
    """No optional package, and no heavy one such as PEFT or datasets: seconds of every start."""
    code = """
        import sys
        from transformers import AutoModel, AutoTokenizer, LlamaForCausalLM, LlamaTokenizerFast
        before = set(sys.modules)
        import baichuan_hf
        print(*{name.partition(".")[0] for name in set(sys.modules) - before})
    """
    command = [sys.executable, "-c", inspect.cleandoc(code)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert set(result.stdout.split()) - {"torch", "transformers"} == {"baichuan_hf"}


def test_wheel_holds_the_whole_package():
    """Type marker, checkpoints and data included, and nothing beside it."""
    wheel = pytest.importorskip("hatchling.builders.wheel", reason="needs hatchling: pip install 'baichuan-hf[dev]'")
    shipped = {file.distribution_path for file in wheel.WheelBuilder(str(REPOSITORY)).recurse_included_files()}
    present = (file for file in PACKAGE.rglob("*") if file.is_file() and "__pycache__" not in file.parts)
    assert shipped == {str(file.relative_to(REPOSITORY)) for file in present}
    assert "baichuan_hf/py.typed" in shipped


def test_version_is_written_once():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    assert "version" not in project["project"]
    assert project["tool"]["hatch"]["version"]["path"] == "baichuan_hf/__init__.py"


def test_command_line_options():
    commands = {}
    for name, command in typer.main.get_command(app).commands.items():
        groups = getattr(command, "commands", {})
        commands |= {f"{name} {member}": groups[member] for member in groups} or {name: command}
    found = {
        name: {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        for name, command in commands.items()
    }
    assert found == CLI_OPTIONS
    assert {field.name for field in dataclasses.fields(TrainArguments)} == TRAIN_ARGUMENTS


def test_top_level_entries():
    listing = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=REPOSITORY)
    if listing.returncode:
        pytest.skip(f"not a git checkout: {listing.stderr.strip()}")
    entries = {line.partition("/")[0] for line in listing.stdout.splitlines()}
    assert {entry for entry in entries if not entry.startswith(".")} <= TOP_LEVEL


@pytest.mark.parametrize("readme", sorted(REPOSITORY.glob("README*.md")), ids=lambda file: file.name)
def test_readme_code_prints_what_it_says(readme, tmp_path):
    """The python blocks, one after another; a text block behind one is what it prints."""
    pattern = r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```)?"
    blocks = re.findall(pattern, readme.read_text(), re.MULTILINE | re.DOTALL)
    script = tmp_path / "blocks.py"
    script.write_text("\n".join(code for code, _ in blocks))
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, script]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "".join(printed for _, printed in blocks)
