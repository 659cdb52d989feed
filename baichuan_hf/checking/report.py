"""What a check has found."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple


Level = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """One thing to know about a folder.

    An error keeps the model from loading or from computing what it was trained to; a warning is likely one; a note is
    neither.
    """

    level: Level
    part: str
    what: str
    way_out: str | None = None


class Inferred(NamedTuple):
    """A value that the config does not hold, and the values that it follows from."""

    value: Any
    because: str


@dataclass
class Report:
    """What `check_folder` knows of a folder; fields are filled as far as the check came."""

    folder: str
    family: str | None = None
    model_class: str | None = None
    inferred: dict[str, Inferred] = field(default_factory=dict)
    parameters: int | None = None
    dtypes: dict[str, int] = field(default_factory=dict)  # parameters of each
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    generated: str | None = None
    findings: list[Finding] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether there is no error."""
        return not self.has_errors()

    def has_errors(self, *parts: str) -> bool:
        """Whether there is an error, in these parts or in any."""
        return any(finding.level == "error" and (not parts or finding.part in parts) for finding in self.findings)

    def error(self, part: str, what: str, way_out: str) -> None:
        self.findings.append(Finding("error", part, what, way_out))

    def warning(self, part: str, what: str, way_out: str) -> None:
        self.findings.append(Finding("warning", part, what, way_out))

    def note(self, part: str, what: str, way_out: str | None = None) -> None:
        self.findings.append(Finding("note", part, what, way_out))

    def as_dict(self) -> dict[str, Any]:
        """For json."""
        inferred = {name: value._asdict() for name, value in self.inferred.items()}
        return {"ok": self.ok, **asdict(self), "inferred": inferred}
