"""Using a model: loading it, continuing a text, and talking to it."""

from .generation import ChatSession, generate_text, load_causal_lm


__all__ = ["ChatSession", "generate_text", "load_causal_lm"]
