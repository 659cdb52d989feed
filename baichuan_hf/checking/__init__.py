"""Looking a checkpoint folder over: what it is, what was inferred, what is wrong with it and what to do."""

from .folder import check_folder
from .report import Finding, Report


__all__ = ["Finding", "Report", "check_folder"]
