"""A real HTTP server of a folder that can be told to fail: what shards are fetched from in tests."""

import threading
import time
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Server:
    """Serves a folder below /set/. `faults`: how the next answers to a GET of a file go wrong, by its name.

    A fault is a status, "stall" (nothing after half of it), "cut" (the line breaks after half of it), "short" (half of
    it, as if that were all) or "flip" (one byte differs). ranges: "yes", "ignored" (the whole file comes), "no" (that
    is said, too). secret: what the query or the password must be.
    """

    def __init__(self, folder: Path, ranges="yes", secret=None):
        self.folder, self.ranges, self.secret = folder, ranges, secret
        self.faults: dict[str, list[int | str]] = {}
        self.always: int | str | None = None  # a fault of every answer for a tar
        self.delay = 0.0  # seconds for each 64 KiB
        self.gets: Counter[str] = Counter()
        self.heads: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()  # bytes, by name
        self.starts: list[tuple[str, int]] = []
        self.over = threading.Event()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/set/"

    def read(self):
        """Tars of which anything was asked for."""
        return {name for name in self.gets if name.endswith(".tar")}


@contextmanager
def serving(folder, port=0, **settings):
    server = Server(folder, **settings)
    http = ThreadingHTTPServer(("127.0.0.1", port), _handler(server))
    http.daemon_threads = True
    server.port = http.server_address[1]
    thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        http.shutdown()
        http.server_close()
        thread.join()


def _handler(server):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_HEAD(self):
            server.heads[urlsplit(self.path).path.removeprefix("/set/")] += 1
            self._answer(body=False)

        def do_GET(self):
            self._answer(body=True)

        def _answer(self, body):
            split = urlsplit(self.path)
            name = unquote(split.path).removeprefix("/set/")
            path = server.folder / name
            fault = None
            if body:
                server.gets[name] += 1
                queue = server.faults.get(name)
                fault = queue.pop(0) if queue else (server.always if name.endswith(".tar") else None)
            if server.secret is not None and split.query != server.secret:
                return self._refuse(403)
            if isinstance(fault, int):
                return self._refuse(fault)
            if not path.is_file():
                return self._refuse(404)
            data = path.read_bytes()
            start, end = self._span(len(data))
            ranged = (start, end) != (0, len(data))
            data = data[start:end]
            if fault == "flip":
                data = data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]
            if fault == "short":
                data = data[: len(data) // 2]
            self.send_response(206 if ranged else 200)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Accept-Ranges", "none" if server.ranges == "no" else "bytes")
            if ranged:
                self.send_header("Content-Range", f"bytes {start}-{end - 1}/{path.stat().st_size}")
            self.end_headers()
            if body:
                server.starts.append((name, start))
                self._send(name, data, fault)

        def _span(self, size):
            asked = self.headers.get("Range")
            if asked is None or server.ranges != "yes":
                return 0, size
            first, last = asked.removeprefix("bytes=").split("-")
            return int(first), min(int(last) + 1, size)

        def _send(self, name, data, fault):
            stop = len(data) // 2 if fault in ("stall", "cut") else len(data)
            try:
                for begin in range(0, stop, 1 << 16):
                    time.sleep(server.delay)
                    part = data[begin : min(begin + (1 << 16), stop)]
                    self.wfile.write(part)
                    server.sent[name] += len(part)
                self.wfile.flush()
                if fault == "stall":
                    server.over.wait(300)
            except (BrokenPipeError, ConnectionResetError):
                pass
            if fault in ("stall", "cut"):
                self.close_connection = True

        def _refuse(self, status):
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

    return Handler
