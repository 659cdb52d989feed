"""What several test files share."""

from .models import FAMILIES, REPOSITORY, golden_folder, tiny_config


__all__ = ["FAMILIES", "REPOSITORY", "golden_folder", "tiny_config"]
