#!/usr/bin/env python3
"""A probe of an application: `serve` answers on a unix socket, `idle` waits, `migrate` leaves a mark, `check` is its health check."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer

SOCKET = Path(os.environ.get("UDS_PATH", "/nowhere"))
SICK = Path("/tmp/sick")


class Handler(BaseHTTPRequestHandler):
    """Answers /readyz with 200 (503 once it was told to be sick), and anything else with what it is."""

    def do_GET(self) -> None:
        """Answer one request."""
        if self.path == "/sicken":
            SICK.touch()
        status = 503 if self.path == "/readyz" and SICK.exists() else 200
        body = json.dumps({"secret": Path("/run/secrets/word").read_text(), "environment": dict(os.environ), "path": self.path}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        """Name the client: a unix socket has no address."""
        return "unix"


class Server(ThreadingMixIn, UnixStreamServer):
    """Serves every request in a thread of its own."""

    daemon_threads = True


def main() -> int:
    """Do what the first argument says."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    match sys.argv[1]:
        case "serve":
            SOCKET.unlink(missing_ok=True)
            with Server(str(SOCKET), Handler) as server:
                SOCKET.chmod(0o666)
                server.serve_forever()
        case "idle":
            while True:
                time.sleep(3600)
        case "migrate":
            print("migrated with", len(Path("/run/secrets/word").read_text()), "characters")
        case "check":
            return int(SICK.exists())
    return 0


if __name__ == "__main__":
    sys.exit(main())
