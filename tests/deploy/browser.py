"""A real headless browser, driven through its DevTools protocol."""

import base64
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_PATIENCE = 30  # seconds


class Tab:
    """One page. `requests` are the addresses that it asked for, `complaints` its errors."""

    def __init__(self, address: str) -> None:
        import websocket  # noqa: PLC0415 - open_tab has skipped where it is absent

        self._socket = websocket.create_connection(address, timeout=_PATIENCE, suppress_origin=True)
        self._number = 0
        self.requests: list[str] = []
        self.complaints: list[str] = []
        for domain in ("Page", "Runtime", "Network", "Log", "DOM"):
            self.do(f"{domain}.enable")

    def do(self, method: str, **params: object) -> Any:  # noqa: ANN401 - as the protocol answers
        """Result of a command."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv())
            if message.get("id") == self._number:
                assert "error" not in message, message
                return message["result"]
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        params = message.get("params", {})
        if message["method"] == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif message["method"] == "Runtime.exceptionThrown":
            self.complaints.append(str(params["exceptionDetails"]))
        elif message["method"] == "Log.entryAdded":
            self.complaints.append(params["entry"]["text"])

    def value(self, expression: str) -> Any:  # noqa: ANN401 - of any type
        """Of a JavaScript expression."""
        return self.do("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def wait_for(self, expression: str) -> None:
        until = time.monotonic() + _PATIENCE
        while not self.value(f"!!({expression})"):
            assert time.monotonic() < until, (expression, self.value("document.body.innerText"))
            time.sleep(0.05)

    def open(self, address: str, width: int, height: int, scheme: str) -> None:
        self.do(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self.do("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.do("Page.navigate", url=address)
        self.wait_for(f"location.href.startsWith('{address}') && document.readyState === 'complete'")

    def choose(self, selector: str, path: Path) -> None:
        """Give a file to an input."""
        root = self.do("DOM.getDocument")["root"]["nodeId"]
        node = self.do("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.do("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def picture(self, path: Path) -> None:
        """The whole page as PNG."""
        data = self.do("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))


@contextmanager
def open_tab(folder: Path) -> Iterator[Tab]:
    """A tab of a browser that lives in a folder; skips where there is none."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no chromium on this machine")
    pytest.importorskip("websocket", reason="websocket-client is in the extra `test`")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", f"--user-data-dir={folder}"]
    with subprocess.Popen([program, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            port = _port(folder / "DevToolsActivePort")
            wanted = urllib.request.Request(f"http://127.0.0.1:{port}/json/new", method="PUT")
            with urllib.request.urlopen(wanted) as answer:
                yield Tab(json.load(answer)["webSocketDebuggerUrl"])
        finally:
            process.kill()


def _port(file: Path) -> int:
    until = time.monotonic() + _PATIENCE
    while not (file.exists() and file.read_text().strip()):
        assert time.monotonic() < until, "the browser did not start"
        time.sleep(0.1)
    return int(file.read_text().split()[0])
