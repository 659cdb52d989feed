"""Judging a model: what it holds and costs, how well it foretells texts, and how it does in benchmarks."""

from .perplexity import measure_text, read_documents
from .size import ASSUMPTIONS, build_on_meta, measure
from .tasks import find_tasks, run_tasks


__all__ = ["ASSUMPTIONS", "build_on_meta", "find_tasks", "measure", "measure_text", "read_documents", "run_tasks"]
