"""A headless Chromium, driven by its debugging protocol over a pipe: keys go in, what a screen reader hears comes out."""

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_KEYS = {"Tab": 9, "Enter": 13, "Space": 32}
_PATIENCE_S = 30.0


class Browser:
    """One page at a time."""

    def __init__(self, profile: Path, width: int = 1400, height: int = 1000) -> None:
        commands, self._write = os.pipe()
        self._read, told = os.pipe()
        options = f"--headless --no-sandbox --disable-gpu --remote-debugging-pipe --window-size={width},{height}"
        command = f'exec "{CHROMIUM}" {options} --user-data-dir="{profile}" 3<&{commands} 4>&{told}'
        self._process = subprocess.Popen(["bash", "-c", command], pass_fds=(commands, told), stderr=subprocess.DEVNULL)
        os.close(commands)
        os.close(told)
        self._last, self._session, self._rest = 0, "", b""

    def open(self, url: str) -> None:
        """Returns when the page's scripts have begun."""
        self._session = ""
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._ask("Page.enable")
        self._ask("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def value(self, expression: str) -> Any:
        """Of JavaScript in the page."""
        found = self._ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, expression: str) -> None:
        """Until it is true."""
        until = time.monotonic() + _PATIENCE_S
        while not self.value(expression):
            assert time.monotonic() < until, (
                f"{expression} did not become true; {self.value('document.body.innerText')}"
            )
            time.sleep(0.02)

    def press(self, key: str, times: int = 1) -> None:
        """Tab, Enter or Space, as a keyboard does."""
        text = {"Enter": "\r", "Space": " "}.get(key, "")
        event = {"key": text if key == "Space" else key, "code": key, "windowsVirtualKeyCode": _KEYS[key]}
        for _ in range(times):
            self._ask("Input.dispatchKeyEvent", type="keyDown", text=text, **event)
            self._ask("Input.dispatchKeyEvent", type="keyUp", **event)

    def write(self, text: str) -> None:
        """Into what has the focus."""
        self._ask("Input.insertText", text=text)

    def tab_to(self, name: str, most: int = 200) -> list[str]:
        """Tab until what has the focus is called this; the names on the way."""
        passed: list[str] = []
        while (now := self.focused()) != name:
            assert len(passed) < most, f"{name!r} is not reached by the keyboard; passed {passed}"
            passed.append(now)
            self.press("Tab")
        return passed

    def focused(self) -> str:
        """The accessible name of what has the focus, "" for nothing."""
        found = self._ask("Runtime.evaluate", expression="document.activeElement")["result"]
        return next((self._name(node) for node in self._nodes(objectId=found["objectId"]) if not node["ignored"]), "")

    def named(self, role: str) -> list[str]:
        """Accessible names of all that has a role, in the order of the page."""
        nodes = self._ask("Accessibility.getFullAXTree")["nodes"]
        return [self._name(node) for node in nodes if not node["ignored"] and node["role"]["value"] == role]

    def picture(self) -> str:
        """A PNG of the whole page, base64."""
        size = self._ask("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        return str(self._ask("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)["data"])

    def _nodes(self, **which: str) -> list[dict[str, Any]]:
        nodes: list[dict[str, Any]] = self._ask("Accessibility.getPartialAXTree", fetchRelatives=False, **which)[
            "nodes"
        ]
        return nodes

    @staticmethod
    def _name(node: dict[str, Any]) -> str:
        return str(node.get("name", {}).get("value", ""))

    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._last += 1
        asked: dict[str, Any] = {"id": self._last, "method": method, "params": parameters}
        if self._session:
            asked["sessionId"] = self._session
        os.write(self._write, json.dumps(asked).encode() + b"\0")
        while True:
            while b"\0" not in self._rest:
                some = os.read(self._read, 65_536)
                assert some, "Chromium has ended"
                self._rest += some
            message, _, self._rest = self._rest.partition(b"\0")
            told = json.loads(message)
            if told.get("id") == self._last:
                assert "error" not in told, (method, told["error"])
                result: dict[str, Any] = told["result"]
                return result

    def __enter__(self) -> "Browser":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait(timeout=30)
        os.close(self._write)
        os.close(self._read)
