"""The HTTP side of both ports of the Hub-compatible test server: routes, answers, ranges, faults on request."""

import json
import re
import socket
import struct
import time
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, unquote, urlsplit

from .store import HubError

ROUTES: list[tuple[str, re.Pattern, str]] = []


def route(method: str, path: str):
    """Register a handler method. `{name}` matches one segment of the path, `{name*}` all that is left."""

    def register(function):
        pattern = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", re.sub(r"\{(\w+)\*\}", r"(?P<\1>.+)", path))
        ROUTES.append((method, re.compile(pattern), function.__name__))
        return function

    return register


class Handler(BaseHTTPRequestHandler):
    """What both ports share: reading requests, writing answers, committing faults. One instance a connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or a body waits 40 ms for the other side to acknowledge its headers

    def log_message(self, *arguments):
        """Quiet: `HubServer.requests` is the log."""

    def handle_any(self):
        parts = urlsplit(self.path)
        self.query = parse_qs(parts.query)
        self.status, self.answer_fault, self.hub = 0, None, self.server.hub
        fault = self.hub.faults.take(f"{self.command} {parts.path}")
        try:
            if fault is not None and fault.kind == "slow":
                time.sleep(fault.seconds)
            if fault is not None and fault.kind == "drop-request":
                return self.drop_request()
            self.body = self.read_body()
            if fault is not None and fault.kind == "status":
                raise HubError(fault.status, fault.message)
            if fault is not None and fault.kind in ("drop-response", "lose-response"):
                self.answer_fault = fault.kind
            self.dispatch(parts.path)
        except HubError as error:
            self.send_error_answer(error)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            self.hub.log(self.command, parts.path, self.status)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = handle_any

    def dispatch(self, path: str) -> None:
        """What models have, Spaces have under other addresses: their names begin with `spaces/`."""
        space = "spaces/" if path.startswith(("/spaces/", "/api/spaces/")) else ""
        path = path.replace("/api/spaces/", "/api/models/", 1).removeprefix("/spaces") if space else path
        for method, pattern, name in ROUTES:
            match = pattern.fullmatch(path) if method == self.command.replace("HEAD", "GET") else None
            if match and hasattr(self, name):
                found = {key: unquote(value) for key, value in match.groupdict().items()}
                return getattr(self, name)(**found | ({"namespace": space + found["namespace"]} if space else {}))
        self.hub.unexpected.append(f"{self.command} {path}")
        raise HubError(404, f"The test server does not know {self.command} {path}")

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def drop_request(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)) // 2)
        self.reset()

    def reset(self) -> None:
        """Close the connection at once, with a reset, as a crash would."""
        self.close_connection = True
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def send(self, content: bytes = b"", status: int = 200, headers: dict | None = None, kind="application/json"):
        if self.answer_fault == "lose-response":
            return self.reset()
        self.status = status
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return None
        if self.answer_fault == "drop-response":
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
            return None
        self.wfile.write(content)
        return None

    def send_json(self, data, status: int = 200) -> None:
        self.send(json.dumps(data).encode(), status)

    def send_error_answer(self, error: HubError) -> None:
        headers = {"X-Error-Message": error.message}
        if error.code is not None:
            headers["X-Error-Code"] = error.code
        self.send(json.dumps({"error": error.message, **error.details}).encode(), error.status, headers)

    def send_file(self, content: bytes, headers: dict) -> None:
        """The whole content, or the part that a `Range` header asks for (206; 416 if there is nothing there)."""
        headers = {"Accept-Ranges": "bytes", **headers}
        match = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not match or match.group(0) == "bytes=-":
            return self.send(content, 200, headers, kind="application/octet-stream")
        first, last = match.groups()
        start = int(first) if first else max(len(content) - int(last), 0)
        stop = min(int(last) + 1, len(content)) if first and last else len(content)
        if start >= stop:
            return self.send(b"", 416, headers | {"Content-Range": f"bytes */{len(content)}"})
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
        return self.send(content[start:stop], 206, headers, kind="application/octet-stream")
