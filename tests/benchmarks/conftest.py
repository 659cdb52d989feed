"""What the tests of the benchmarks share: text that can be learnt, and settings that take seconds."""

import pytest

from baichuan_hf.benchmarks.variants import Settings


@pytest.fixture(scope="session")
def text_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    lines = [f"{number} bottles of beer on the wall, {number} bottles of beer.\n" for number in range(700)]
    path.write_text("".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def settings():
    return Settings(
        steps=3,
        batch_size=2,
        length=8,
        hidden_size=64,
        num_hidden_layers=2,
        deep_layers=3,
        learning_rates=(1e-3, 1e-2),
        seeds=2,
    )
