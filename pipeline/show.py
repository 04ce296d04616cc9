"""Probe tables on the terminal."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from eval.cells import Json
from eval.probe_tables import ProbeTable, probe_tables


def print_comparison(out: Path, results: Json) -> None:
    """Print the tables of a comparison, and where its files are."""
    print_tables(probe_tables(results))
    print(f"results: {out / 'results.json'}\ntables:  {out / 'table.md'}, table.tex\nreport:  {out / 'report.html'}")


def print_tables(tables: list[ProbeTable]) -> None:
    """Print the scores of all encoders, and the verdict of each table."""
    for table in tables:
        _print(table)


def _print(table: ProbeTable) -> None:
    header, *rows = table.rows
    shown = Table(*header, title=f"Probe ({table.protocol}) on {table.name}, {len(table.classes)} classes")
    for row in rows:
        shown.add_row(*row)
    console = Console(width=None if Console().is_terminal else 120)
    console.print(shown)
    console.print(table.verdict)
    if table.num_refused:
        console.print(f"{table.num_refused} recordings could not be read and are not in the table.")
