"""The page to label with, served to this machine alone.

Other pages of the browser must neither read the set nor write labels: a token in the address, the Host (against names that are
made to point here) and the Origin of what is posted are checked. Texts travel as JSON, and the page shows them as text.
"""

from __future__ import annotations

import json
import logging
import secrets
import threading
from collections.abc import Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any

from datakit.errors import UserError
from datakit.evalset.labels import GRADES, Labels

MOST_BYTES = 10_000

log = logging.getLogger(__name__)


def server(pairs: Sequence[dict[str, Any]], labels: Labels, annotator: str, port: int) -> tuple[ThreadingHTTPServer, str]:
    """A server on 127.0.0.1 (`port` 0: any that is free) that is not yet serving, and the address of its page."""
    token, nonce = secrets.token_urlsafe(16), secrets.token_urlsafe(16)
    page = (resources.files("datakit.evalset") / "page.html").read_text(encoding="utf-8").replace("NONCE", nonce).encode()
    known = {each["pair"] for each in pairs}
    lock = threading.Lock()

    def answer(path: str) -> tuple[bytes, str] | None:
        """What lies at a path below the token."""
        if path == "":
            return page, "text/html"
        value: Any = None
        if path == "state":
            value = {"annotator": annotator, "labels": [labels.grades.get(each["pair"]) for each in pairs]}
        elif path.startswith("pair/") and path[5:].isdecimal() and int(path[5:]) < len(pairs):
            each = pairs[int(path[5:])]
            value = {name: each[name] for name in ("pair", "instruction", "query", "document")}
        return None if value is None else (json.dumps(value).encode(), "application/json")

    class Handler(BaseHTTPRequestHandler):
        timeout = 60

        def do_GET(self) -> None:
            below = self.below()
            found = answer(below) if below is not None else None
            self.reply(HTTPStatus.NOT_FOUND) if found is None else self.reply(HTTPStatus.OK, *found)

        def do_POST(self) -> None:
            origin, size = self.headers.get("Origin"), self.headers.get("Content-Length", "")
            if self.below() != "label" or origin not in (None, f"http://{self.headers.get('Host')}"):
                return self.reply(HTTPStatus.NOT_FOUND)
            if not size.isdecimal() or int(size) > MOST_BYTES:
                return self.reply(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            try:
                said = json.loads(self.rfile.read(int(size)))
                pair, grade = said["pair"], said["label"]
                allowed = pair in known and (grade is None or (type(grade) is int and 0 <= grade < len(GRADES)))
            except (ValueError, TypeError, KeyError):
                allowed = False
            if not allowed:
                return self.reply(HTTPStatus.BAD_REQUEST)
            try:
                with lock:
                    labels.put(pair, grade)
            except OSError as error:
                log.error("A label could not be written: %s", error)
                return self.reply(HTTPStatus.INSUFFICIENT_STORAGE)
            return self.reply(HTTPStatus.NO_CONTENT)

        def below(self) -> str | None:
            """The path below the token; None for those who do not know it, or come by another name."""
            given, _, rest = self.path.removeprefix("/").partition("/")
            known_host = self.headers.get("Host") in (f"127.0.0.1:{made.server_port}", f"localhost:{made.server_port}")
            return rest if known_host and secrets.compare_digest(given.encode(), token.encode()) else None

        def reply(self, status: HTTPStatus, body: bytes = b"", kind: str = "text/plain") -> None:
            self.send_response(status)
            allowed = f"script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'"
            headers = {
                "Content-Type": f"{kind}; charset=utf-8",
                "Content-Length": str(len(body)),
                "Content-Security-Policy": f"default-src 'none'; {allowed}; base-uri 'none'; frame-ancestors 'none'",
                "Cache-Control": "no-store",
                "Referrer-Policy": "no-referrer",
                "X-Content-Type-Options": "nosniff",
                "Cross-Origin-Resource-Policy": "same-origin",
            }
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: Any) -> None:
            log.debug(format, *arguments)

    try:
        made = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except OSError as error:
        raise UserError(f"The page cannot be served at port {port} ({error.strerror}). Give another --port, or none.") from error
    made.daemon_threads = True
    return made, f"http://127.0.0.1:{made.server_port}/{token}/"
