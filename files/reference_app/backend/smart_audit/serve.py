"""`smart-audit serve`: one uvicorn process on one unix socket."""

import contextlib
import logging
import socket
import stat
from pathlib import Path
from types import FrameType

import uvicorn

from smart_audit import heartbeat
from smart_audit.app import Services, create_app
from smart_audit.settings import ServeSettings, SettingsError

log = logging.getLogger(__name__)

_BACKLOG = 1024


def bind(path: str) -> socket.socket:
    """Return a socket that listens at `path`, mode 0666, in the place of one that a crash has left there.

    It is made under another name and renamed, so that the path never leads to a socket that cannot be used yet.

    Raises:
        SettingsError: somebody answers there already, something else is there, or the directory cannot be written.
    """
    target = Path(path)
    if target.exists() and not stat.S_ISSOCK(target.stat().st_mode):
        raise SettingsError(f"UDS_PATH names {path}, which is there and is no socket.")
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with probe:
        probe.settimeout(1)
        try:
            probe.connect(path)
        except OSError:
            pass  # Nobody answers: nothing is there, or only what a crash has left.
        else:
            raise SettingsError(f"UDS_PATH names {path}, where another process is answering already.")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    new = target.with_name(f".{target.name}.new")
    try:
        new.unlink(missing_ok=True)
        listener.bind(str(new))
        # The proxy runs as another user; who may come near is decided by the directory's mode.
        new.chmod(0o666)
        listener.listen(_BACKLOG)
        new.rename(target)
    except OSError as error:
        listener.close()
        raise SettingsError(f"UDS_PATH names {path}, where no socket can be made ({error.strerror or error}).") from None
    return listener


class _Server(uvicorn.Server):
    """Uvicorn that, when told to stop, first says "not ready" and keeps serving for a moment.

    Whoever looks at `/readyz` stops sending meanwhile, so that closing the socket refuses nobody.
    """

    def __init__(self, config: uvicorn.Config, services: Services) -> None:
        super().__init__(config)
        self._services = services
        self._drain_ticks: int | None = None

    def handle_exit(self, sig: int, _frame: FrameType | None) -> None:
        # Uvicorn would raise the signal again at the end, and a stop as asked for would look like a crash.
        if self._services.draining:
            self.should_exit = True
            return
        log.info("draining", extra={"fields": {"signal": sig}})
        self._services.draining = True
        # Uvicorn's loop calls on_tick ten times a second.
        self._drain_ticks = self._services.settings.drain_milliseconds // 100

    async def on_tick(self, counter: int) -> bool:
        if self._drain_ticks is not None:
            if self._drain_ticks <= 0:
                self.should_exit = True
            self._drain_ticks -= 1
        return await super().on_tick(counter)


def serve(settings: ServeSettings) -> int:
    """Serve until told to stop; return the exit status.

    Raises:
        SettingsError: the socket cannot be made.
    """
    heartbeat.announce("serve")
    application = create_app(settings)
    listener = bind(settings.uds_path)
    path = Path(settings.uds_path)
    inode = path.stat().st_ino
    config = uvicorn.Config(
        application.asgi,
        log_config=None,
        access_log=False,
        # The address of the client is taken from the proxy's header where it is needed.
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=settings.graceful_timeout_seconds,
        # Longer than the proxy keeps idle connections, so that it is never the backend that closes one under a request.
        timeout_keep_alive=75,
    )
    server = _Server(config, application.services)
    log.info("listening", extra={"fields": {"uds_path": settings.uds_path}})
    server.run(sockets=[listener])
    # Only if it is still ours: a successor may have put its own in this place.
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_ino == inode:
            path.unlink()
    log.info("stopped")
    return 0 if server.started else 1
