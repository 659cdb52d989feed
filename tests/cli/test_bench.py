"""`baichuan-hf bench` as a user types it."""

import pytest
import typer

from baichuan_hf.cli.bench import bench


CASES = sorted(typer.main.get_command(bench).commands)


@pytest.mark.parametrize("case", CASES)
def test_help_of_every_case_has_an_example(run, case):
    result = run("bench", case, "--help")
    assert result.exit_code == 0
    assert f"Example: baichuan-hf bench {case}" in result.stdout


@pytest.mark.slow
def test_architectures_writes_rows_and_prints_tables(run, tmp_path):
    (tmp_path / "text.txt").write_text("".join(f"{number} bottles of beer on the wall.\n" for number in range(700)))
    sizes = {"steps": 2, "batch-size": 2, "length": 8, "hidden-size": 64, "num-hidden-layers": 2, "deep-layers": 3}
    words = [word for name, value in sizes.items() for word in (f"--{name}", value)]
    files = ["--train-file", tmp_path / "text.txt", "--rows", tmp_path / "rows.csv"]
    result = run(
        "bench",
        "architectures",
        *files,
        *words,
        "--axis",
        "norm",
        "--learning-rate",
        1e-3,
        "--seeds",
        1,
        "--device",
        "cpu",
    )
    assert result.exit_code == 0, result.stderr
    assert "norm: layer_norm, rate 0.001, seed 0:" in result.stdout
    assert "bits per byte" in result.stdout
    assert len((tmp_path / "rows.csv").read_text().splitlines()) == 3


def test_wrong_input_is_one_line(run, tmp_path):
    result = run("bench", "architectures", "--train-file", tmp_path / "none.txt")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: --train-file")
    assert result.stderr.count("\n") == 1
