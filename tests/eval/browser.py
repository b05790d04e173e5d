"""A headless Chromium, driven through its own protocol over a pipe: real keys, real files, no further package."""

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from contextlib import contextmanager

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-sync --disable-component-update --hide-scrollbars --remote-debugging-pipe"
).split()
KEYS = {"ArrowRight": 39, "ArrowLeft": 37, "ArrowUp": 38, "ArrowDown": 40, "Enter": 13, "Escape": 27}
PATIENCE = 60  # seconds


@contextmanager
def browser(folder):
    """A page of a fresh Chromium whose profile and downloads lie in `folder`."""
    to_read, to_write = os.pipe()
    from_read, from_write = os.pipe()
    command = [CHROMIUM, *QUIET, f"--user-data-dir={folder}/profile", "about:blank"]
    wired = ["bash", "-c", f'exec "$@" 3<&{to_read} 4>&{from_write}', "chromium", *command]
    process = subprocess.Popen(
        wired, pass_fds=(to_read, from_write), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    os.close(to_read)
    os.close(from_write)
    try:
        yield Page(to_write, from_read, folder)
    finally:
        os.close(to_write)
        os.close(from_read)
        process.terminate()
        process.wait(timeout=PATIENCE)


class Page:
    """One tab."""

    def __init__(self, to_write, from_read, folder):
        self.to_write, self.from_read, self.folder = to_write, from_read, folder
        self.numbers, self.rest, self.session = itertools.count(1), b"", None
        targets = self.call("Target.getTargets")["targetInfos"]
        tab = next(target["targetId"] for target in targets if target["type"] == "page")
        self.session = self.call("Target.attachToTarget", targetId=tab, flatten=True)["sessionId"]
        self.call("Page.enable")
        self.call("Runtime.enable")
        self.call("Page.setBypassCSP", enabled=False)
        self.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))

    def call(self, method, **params):
        """One command of the DevTools protocol."""
        number = next(self.numbers)
        said = {"id": number, "method": method, "params": params}
        if self.session and not method.startswith(("Target.", "Browser.")):
            said["sessionId"] = self.session
        os.write(self.to_write, json.dumps(said).encode() + b"\0")
        until = time.monotonic() + PATIENCE
        while True:
            answer = self._next(until)
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer}"
                return answer["result"]

    def _next(self, until):
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.from_read], [], [], max(0, until - time.monotonic()))
            assert ready, "the browser says nothing"
            self.rest += os.read(self.from_read, 1 << 20)
        message, self.rest = self.rest.split(b"\0", 1)
        return json.loads(message)

    def open(self, path, query=""):
        """Load a file and wait for it."""
        self.call("Page.navigate", url=path.as_uri() + query)
        self.wait("document.readyState === 'complete' && Boolean(document.getElementById('begin'))")

    def run(self, script):
        """The value of an expression on the page."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, condition):
        """Wait until an expression is true."""
        until = time.monotonic() + PATIENCE
        while not self.run(condition):
            assert time.monotonic() < until, f"{condition} did not come true"
            time.sleep(0.05)

    def press(self, *keys):
        """Press keys as a person does: trusted events."""
        for key in keys:
            code = {"windowsVirtualKeyCode": KEYS.get(key, ord(key[0].upper())), "key": key}
            text = {"text": "\r" if key == "Enter" else key} if len(key) == 1 or key == "Enter" else {}
            self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **code, **text)
            self.call("Input.dispatchKeyEvent", type="keyUp", **code)

    def click(self, selector):
        """Click the middle of an element."""
        place = self.run(
            "(e => { e.scrollIntoView({block: 'center', behavior: 'instant'}); const r = e.getBoundingClientRect(); "
            f"return [r.x + r.width / 2, r.y + r.height / 2]; }})(document.querySelector({selector!r}))"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1)

    def choose(self, selector, path):
        """Give a file to an input."""
        found = self.call("Runtime.evaluate", expression=f"document.querySelector({selector!r})")["result"]["objectId"]
        self.call("DOM.setFileInputFiles", files=[str(path)], objectId=found)

    def look(self, path, width=1100, height=900, *, dark=False):
        """Save what is seen in a window of this size."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self.call(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}],
        )
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def downloaded(self, name):
        """The text of a file that the page saved."""
        path, until = self.folder / name, time.monotonic() + PATIENCE
        while not path.exists():
            assert time.monotonic() < until, f"{path} was not saved"
            time.sleep(0.05)
        return path.read_text(encoding="utf-8")
