"""Continuous batching: requests, answers and rows."""

import pytest
import torch

from baichuan_hf.benchmarks import batching
from baichuan_hf.benchmarks.random_models import compared_models
from baichuan_hf.benchmarks.rows import read_rows


CPU = torch.device("cpu")


def test_requests_are_mixed_and_the_same_in_every_run():
    sent = batching.mixed_requests(512, 64, 1024, 128)
    assert sent == batching.mixed_requests(512, 64, 1024, 128)
    lengths, news = zip(*((len(request.prompt), request.new_tokens) for request in sent), strict=True)
    assert 32 <= min(lengths) < 100 < 900 < max(lengths) <= 1024
    assert 16 <= min(news) < 30 < 110 < max(news) <= 128
    assert all(3 <= token < 512 for request in sent for token in request.prompt)


@pytest.mark.parametrize(
    ("device", "cuda_graph"),
    [
        ("cpu", False),
        pytest.param("cuda", False, marks=pytest.mark.gpu),
        pytest.param("cuda", True, marks=pytest.mark.gpu),
    ],
)
@pytest.mark.parametrize("name", ["baichuan", "baichuan, ALiBi"])
def test_answers_are_those_of_generate(name, device, cuda_graph):
    models, _ = compared_models("tiny", [name], 64, torch.device(device))
    model = models[name].float()  # or rounding would decide near ties
    sent = batching.mixed_requests(512, 6, 40, 9)
    _, answers = batching.serve(model, sent, batching.batching_config(sent, cuda_graph=cuda_graph))
    for request, answer in zip(sent, answers, strict=True):
        ids = torch.tensor([request.prompt], device=device)
        length = {"max_new_tokens": request.new_tokens, "min_new_tokens": request.new_tokens}
        assert answer == model.generate(ids, do_sample=False, **length)[0, ids.shape[1] :].tolist()


def test_continuous_batching_of_models_of_the_same_weights(tmp_path):
    path, lines = tmp_path / "batching.csv", []
    options = {"shape": "tiny", "requests": 4, "prompt_tokens": 40, "new_tokens": 9, "rounds": 1, "device": CPU}
    for _ in range(2):  # of which the second finds all
        batching.measure_batching(path, report=lines.append, **options)
    batching.measure_batching(path, models=["baichuan, ALiBi"], attention="eager", report=lines.append, **options)
    rows = read_rows(path)
    assert [(row["model"], row["attention"], row["equal_requests"]) for row in rows] == [
        ("llama", "sdpa", "1.000"),
        ("baichuan", "sdpa", "1.000"),
        ("baichuan, ALiBi", "eager", ""),
    ]
    total = sum(request.new_tokens for request in batching.mixed_requests(512, 4, 40, 9))
    for row in rows:
        assert float(row["tokens_per_second"]) == pytest.approx(1000 * total / float(row["ms"]), rel=0.02)
    assert len(lines) == batching.batching_table(path).row_count == 3


def test_a_request_that_fails_is_an_error():
    """An id beyond the vocabulary."""
    models, _ = compared_models("tiny", ["baichuan"], 64, CPU)
    sound, broken = batching.Request([5] * 4, 2), batching.Request([5, 700], 2)
    with pytest.raises(RuntimeError, match="requests"):
        batching.serve(models["baichuan"], [sound, broken], batching.batching_config([sound, broken]))


def test_choices_are_checked(tmp_path):
    with pytest.raises(ValueError, match=r"--attention 'flex': unknown; there are sdpa"):
        batching.measure_batching(tmp_path / "rows.csv", shape="tiny", attention="flex", device=CPU)
    with pytest.raises(ValueError, match=r"--cuda-graph: needs a CUDA device, and --device is cpu"):
        batching.measure_batching(tmp_path / "rows.csv", shape="tiny", cuda_graph=True, device=CPU)
