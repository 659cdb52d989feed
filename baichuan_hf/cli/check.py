"""`baichuan-hf check`: what a checkpoint folder is, and what is wrong with it."""

import json
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from . import options


STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}


def check(
    folder: Annotated[str, typer.Argument(help="Checkpoint folder of a Baichuan, whoever wrote it; or `tiny`.")],
    generate: Annotated[
        bool, typer.Option("--generate/--no-generate", help="Load the model at the end and let it write.")
    ] = True,
    device: options.Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Look a checkpoint over: family, names, shapes, values, tokenizer, files, and what it writes.

    Example: [bold]baichuan-hf check DISC-LawLLM[/]

    Says what was inferred and from what, and for each finding the way out. Code in the folder is not run; one tensor
    is in memory at a time, until the last step. Exits with 1 if there is an error.
    """
    from ..checking import check_folder
    from ..checkpoints import resolve_model

    report = check_folder(resolve_model(folder), generate=generate, device=device)
    if as_json:
        print(json.dumps(report.as_dict(), indent=2, ensure_ascii=False))
    else:
        _print(report)
    if not report.ok:
        raise typer.Exit(1)


def _print(report: Any) -> None:
    console = Console(highlight=False)
    facts = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    facts.add_row("family", report.family or "unknown")
    for name, (value, because) in report.inferred.items():
        facts.add_row(name, f"{value}, inferred from {because}")
    if report.model_class:
        facts.add_row("class", report.model_class)
    if report.parameters is not None:
        dtypes = ", ".join(report.dtypes)
        facts.add_row("weights", f"{report.parameters:,} ({dtypes})")
    if report.generated is not None:
        facts.add_row("writes", escape(repr(report.generated)))
    console.print(facts)
    if report.findings:
        table = Table("", "part", "finding", "way out", box=box.SIMPLE_HEAD)
        for finding in sorted(report.findings, key=lambda finding: list(STYLES).index(finding.level)):
            level = f"[{STYLES[finding.level]}]{finding.level}[/]"
            table.add_row(level, finding.part, escape(finding.what), escape(finding.way_out or ""))
        console.print(table)
    levels = [finding.level for finding in report.findings]
    counts = ", ".join(f"{levels.count(level)} {level}{'s' * (levels.count(level) != 1)}" for level in STYLES)
    console.print(f"{escape(report.folder)}: {counts}")
