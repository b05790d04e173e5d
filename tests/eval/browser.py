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
KEYS = {"ArrowRight": 39, "ArrowLeft": 37, "ArrowUp": 38, "ArrowDown": 40, "Enter": 13, "Escape": 27,
        " ": 32, "Tab": 9}  # fmt: skip
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
        self.complaints = []  # what the page wrote to the console, threw, or was stopped from by its policy
        targets = self.call("Target.getTargets")["targetInfos"]
        tab = next(target["targetId"] for target in targets if target["type"] == "page")
        self.session = self.call("Target.attachToTarget", targetId=tab, flatten=True)["sessionId"]
        self.call("Page.enable")
        self.call("Runtime.enable")
        self.call("Log.enable")
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
        said = json.loads(message)
        if said.get("method") in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"):
            self.complaints.append(said["params"])
        return said

    def open(self, path, query="", ready="document.getElementById('begin')"):
        """Load a file and wait for it, and for what is `ready` when its script has run."""
        self.call("Page.navigate", url=path.as_uri() + query)
        self.wait(f"document.readyState === 'complete' && Boolean({ready})")

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
            self.key(key)
            self.key(key, down=False)

    def key(self, key, *, down=True):
        """Put a key down, or let it go."""
        code = {"windowsVirtualKeyCode": KEYS.get(key, ord(key[0].upper())), "key": key}
        text = {"text": "\r" if key == "Enter" else key} if len(key) == 1 or key == "Enter" else {}
        kind = "keyUp" if not down else "keyDown" if text else "rawKeyDown"
        self.call("Input.dispatchKeyEvent", type=kind, **code, **(text if down else {}))

    def type(self, text):
        """Write text where the focus is, as an input method does."""
        self.call("Input.insertText", text=text)

    def place(self, selector):
        """The middle of an element, after it has been brought into view."""
        return self.run(
            "(e => { e.scrollIntoView({block: 'center', behavior: 'instant'}); const r = e.getBoundingClientRect(); "
            f"return [r.x + r.width / 2, r.y + r.height / 2]; }})(document.querySelector({json.dumps(selector)}))"
        )

    def click(self, selector):
        """Click the middle of an element."""
        place = self.place(selector)
        self.mouse("mousePressed", place)
        self.mouse("mouseReleased", place)

    def mouse(self, kind, place):
        """Put the left button down at a place, or let it go."""
        self.call("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1)

    def touch(self, kind, *places):
        """Put fingers down, or lift them where there are none."""
        self.call("Input.dispatchTouchEvent", type=kind, touchPoints=[{"x": x, "y": y} for x, y in places])

    def choose(self, selector, path):
        """Give a file to an input."""
        found = self.call("Runtime.evaluate", expression=f"document.querySelector({selector!r})")["result"]["objectId"]
        self.call("DOM.setFileInputFiles", files=[str(path)], objectId=found)

    def look(self, path, width=1100, height=900, *, dark=False):
        """Save what is seen in a window of this size."""
        self.size(width, height)
        self.media("prefers-color-scheme", "dark" if dark else "light")
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def size(self, width, height):
        """Make the window as large as this; a narrow one is that of a phone."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def media(self, name, value):
        """Say what the reader prefers."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": name, "value": value}])

    def downloaded(self, name):
        """The text of a file that the page saved."""
        path, until = self.folder / name, time.monotonic() + PATIENCE
        while not path.exists():
            assert time.monotonic() < until, f"{path} was not saved"
            time.sleep(0.05)
        return path.read_text(encoding="utf-8")
