"""Models as graphs for other runtimes, through transformers' exporters."""

from .graphs import FORMATS, Exported, export_folder


__all__ = ["FORMATS", "Exported", "export_folder"]
