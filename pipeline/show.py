"""Probe tables on the terminal."""

from rich.console import Console
from rich.table import Table

from eval.stage import ProbeTable


def print_table(table: ProbeTable) -> None:
    """Print the scores of all encoders and the verdict."""
    header, *rows = table.rows()
    shown = Table(*header, title=f"Linear probe on {table.dataset.name}, {len(table.dataset.classes)} classes")
    for row in rows:
        shown.add_row(*row)
    console = Console(width=None if Console().is_terminal else 120)
    console.print(shown)
    console.print(table.verdict())
    if table.dataset.num_refused:
        console.print(f"{table.dataset.num_refused} recordings could not be read and are not in the table.")
