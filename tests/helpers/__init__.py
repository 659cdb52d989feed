"""What several test files share."""

from .models import FAMILIES, golden_folder, tiny_config


__all__ = ["FAMILIES", "golden_folder", "tiny_config"]
