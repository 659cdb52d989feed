"""Judging a model: what it holds and costs."""

from .size import ASSUMPTIONS, build_on_meta, measure


__all__ = ["ASSUMPTIONS", "build_on_meta", "measure"]
