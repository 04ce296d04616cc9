"""One self-contained HTML page: no script, no request to anywhere, so it can be mailed, archived and signed."""

from dataclasses import dataclass
from pathlib import Path

import jinja2

from sharding.names import printable


@dataclass(frozen=True)
class Figure:
    """A picture: PNG bytes and its caption."""

    png: bytes
    caption: str

    @property
    def data(self) -> str:
        """Percent-encoded PNG. Base64 spells short names by chance, and whoever searches the page for names would
        find them; this alphabet has no word.
        """
        return "%" + self.png.hex("%")


@dataclass(frozen=True)
class Section:
    """A part of a page. The first row of the table is its header; the first column is text, the rest numbers."""

    title: str
    text: str = ""
    table: tuple[tuple[str, ...], ...] = ()
    figures: tuple[Figure, ...] = ()


def render_page(title: str, lead: str, sections: list[Section]) -> str:
    """Render a page; every text is escaped."""
    template = (Path(__file__).parent / "page.html").read_text()
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return printable(environment.from_string(template).render(title=title, lead=lead, sections=sections))
