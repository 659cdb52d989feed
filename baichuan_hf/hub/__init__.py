"""What goes to the Hub beside the weights: model cards, and the code of the model."""

from .folder_card import auto_class_of, card_of_folder
from .model_card import CARD_FILES, list_cards, load_card, render_card, save_card, write_cards
from .remote_code import add_remote_code


__all__ = [
    "CARD_FILES",
    "add_remote_code",
    "auto_class_of",
    "card_of_folder",
    "list_cards",
    "load_card",
    "render_card",
    "save_card",
    "write_cards",
]
