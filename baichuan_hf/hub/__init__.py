"""What goes to the Hub beside the weights: model cards."""

from .model_card import CARD_FILES, list_cards, load_card, render_card, save_card, write_cards


__all__ = ["CARD_FILES", "list_cards", "load_card", "render_card", "save_card", "write_cards"]
