"""A backend on a unix socket that says what it was asked; `/api/slow` takes its time."""

from __future__ import annotations

import json
import sys
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer

COLOUR, SOCKET = sys.argv[1], Path(sys.argv[2])


class Handler(BaseHTTPRequestHandler):
    """Answers every request with what it saw."""

    protocol_version = "HTTP/1.1"

    def address_string(self) -> str:
        """Give the log a name: a unix socket's client has no address."""
        return "caddy"

    def do_GET(self) -> None:
        """Answer; wait before the answer for `wait` seconds, and between its ten parts for `pause` seconds."""
        query = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(self.path).query))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        time.sleep(float(query.get("wait", "0")))
        said = json.dumps({"colour": COLOUR, "path": self.path, "headers": dict(self.headers), "length": len(body)}).encode()
        parts = [b"%d\n" % number for number in range(10)] if "pause" in query else [said]
        self.send_response(200)
        self.send_header("Server", "molecule")
        self.send_header("X-Powered-By", "molecule")
        self.send_header("Set-Cookie", "session=secret-of-the-backend")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(sum(map(len, parts))))
        self.end_headers()
        for part in parts:
            self.wfile.write(part)
            self.wfile.flush()
            time.sleep(float(query.get("pause", "0")))

    def do_POST(self) -> None:
        """Answer like GET."""
        self.do_GET()


class Server(ThreadingMixIn, UnixStreamServer):
    """One thread a connection."""

    daemon_threads = True
    request_queue_size = 256


SOCKET.unlink(missing_ok=True)
server = Server(str(SOCKET), Handler)
SOCKET.chmod(0o666)
server.serve_forever()
