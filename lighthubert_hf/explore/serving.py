"""The page over HTTP on this machine alone, with newer data while a run goes on."""

import logging
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from .pages import embedded, page, page_data

logger = logging.getLogger(__name__)
HOST = "127.0.0.1"


class ExploreServer(ThreadingHTTPServer):
    """Answers with the page of `run` and its newest data; to be shut down by whoever starts it."""

    daemon_threads = True

    def __init__(self, run: str | Path, port: int = 0, supernet: str | None = None):
        self.data = lambda: page_data(run, supernet)
        self.data()  # or the first visitor sees the error
        super().__init__((HOST, port), _Handler)

    @property
    def address(self) -> str:
        return f"http://{HOST}:{self.server_address[1]}/"


class _Handler(BaseHTTPRequestHandler):
    server: ExploreServer

    def do_GET(self) -> None:
        # Another site's page could ask for this one under a name of its own: it is not answered.
        if self.headers.get("Host", "").partition(":")[0] not in (HOST, "localhost"):
            return self._answer(403, "text/plain", "only for this machine")
        try:
            if self.path == "/":
                return self._answer(200, "text/html", page(self.server.data(), live=True))
            if self.path == "/data.json":
                return self._answer(200, "application/json", embedded(self.server.data()))
        except (OSError, ValueError) as error:  # the run's folder changes meanwhile
            return self._answer(503, "text/plain", str(error))
        return self._answer(404, "text/plain", "there is only the page")

    def _answer(self, status: int, kind: str, text: str) -> None:
        content = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        logger.debug(format, *args)


def serve(run: str | Path, port: int = 0, *, supernet: str | None = None) -> None:
    """Show the page of `run` at http://127.0.0.1:PORT until Ctrl-C.

    Args:
        run, supernet: see `page_data`.
        port: 0 for any that is free.

    Raises:
        FileNotFoundError, ValueError: if there is nothing to show.
        OSError: if the port is taken.
    """
    with ExploreServer(run, port, supernet) as server:
        print(f"{server.address} (Ctrl-C ends it)", flush=True)
        server.serve_forever()
