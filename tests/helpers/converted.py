"""Reference models and what they are converted to, built once per test run."""

import functools

from transformers import PreTrainedModel

from baichuan_hf import from_transformers
from baichuan_hf.benchmarks.peers import CONFIGURATIONS, build_reference
from baichuan_hf.conversion import ARCHITECTURES


FIRST = {kind: next(iter(configurations)) for kind, configurations in CONFIGURATIONS.items()}
CLASSES = [(kind, name) for kind, architecture in ARCHITECTURES.items() for name in architecture.classes]


@functools.cache
def pair(
    kind: str, name: str | None = None, *, seed: int = 0, model_class: str | None = None
) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A reference in eval mode, by default of the first configuration and class, and ours; not to be changed."""
    reference = build_reference(kind, name or FIRST[kind], seed=seed, model_class=model_class)
    return reference, from_transformers(reference)
