"""What goes to the Hub beside the weights: model cards, and the code of the model."""

from .model_card import CARD_FILES, list_cards, load_card, render_card, save_card, write_cards
from .remote_code import add_remote_code


__all__ = ["CARD_FILES", "add_remote_code", "list_cards", "load_card", "render_card", "save_card", "write_cards"]
