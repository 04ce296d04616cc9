"""The page in a real browser, with an upload, by day and by night, on a desk and in a hand."""

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.deploy.browser import Tab, open_tab
from tests.deploy.server import Server


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with open_tab(tmp_path_factory.mktemp("browser")) as one:
        yield one


def pixels(tab: Tab, image: str) -> int:
    return int(tab.value(f"document.getElementById('{image}').naturalWidth"))


@pytest.mark.parametrize(("width", "height", "scheme"), [(1100, 900, "light"), (390, 844, "dark")])
def test_an_upload_is_shown(
    width: int, height: int, scheme: str, tab: Tab, public: Server, labelled: Path, tmp_path: Path
) -> None:
    tab.requests.clear()
    tab.complaints.clear()
    address = f"http://127.0.0.1:{public.port}/"
    tab.open(address, width, height, scheme)
    tab.choose("#file", labelled / "r0000_0.dcm")
    tab.wait_for("!document.getElementById('found').hidden || document.querySelector('#said.bad')")
    said = tab.value("document.body.innerText")
    assert "Done in" in said
    assert "certified by tag" in said
    assert pixels(tab, "frame") == pixels(tab, "components") == 64
    assert tab.value("document.querySelectorAll('#rows tr').length") == 8
    assert float(tab.value("document.querySelector('#rows td').textContent")) > 0.99
    assert tab.value("document.documentElement.scrollWidth <= innerWidth")  # nothing sticks out sideways
    assert [url for url in tab.requests if not url.startswith((address, "data:", "blob:"))] == []
    assert tab.complaints == []
    tab.picture(tmp_path / f"{scheme}.png")
    shot = cv2.imread(str(tmp_path / f"{scheme}.png"))
    assert width - 20 <= shot.shape[1] <= width  # a scroll bar takes a little
    assert (np.median(shot) > 128) == (scheme == "light")


def test_a_refusal_is_explained(tab: Tab, public: Server, tmp_path: Path) -> None:
    tab.open(f"http://127.0.0.1:{public.port}/", 1100, 900, "light")
    text = tmp_path / "letter.txt"
    text.write_text("Dear Zelmira")
    tab.choose("#file", text)
    tab.wait_for("document.querySelector('#said.bad')")
    assert "not_readable_kind: neither DICOM nor" in tab.value("document.getElementById('said').textContent")


def test_a_token_is_asked_for(tab: Tab, guarded: Server, labelled: Path) -> None:
    tab.open(f"http://127.0.0.1:{guarded.port}/", 390, 844, "dark")
    tab.choose("#file", labelled / "r0000_0.dcm")
    tab.wait_for("document.querySelector('#said.bad')")
    assert "wants a token" in tab.value("document.getElementById('said').textContent")
    tab.value(f"document.getElementById('token').value = '{guarded.token}'")
    tab.choose("#file", labelled / "r0000_0.dcm")
    tab.wait_for("!document.getElementById('found').hidden")
    assert tab.value("document.getElementById('like').hidden")  # no table here


def test_the_documents_work_without_the_internet(tab: Tab, public: Server) -> None:
    tab.requests.clear()
    address = f"http://127.0.0.1:{public.port}/"
    tab.open(f"{address}docs", 1100, 900, "light")
    tab.wait_for("document.body.innerText.includes('/embed')")
    assert [url for url in tab.requests if not url.startswith((address, "data:"))] == []
