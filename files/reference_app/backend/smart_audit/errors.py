"""Errors that mean the same to the web process and to the worker."""


class Unavailable(Exception):
    """A service that we depend on does not answer now; the same call may succeed later.

    Attributes:
        service: `database`, `valkey` or `object store`.
        retry_after_seconds: when it is worth trying again.
    """

    def __init__(self, service: str, detail: str, retry_after_seconds: int = 2) -> None:
        super().__init__(f"{service}: {detail}")
        self.service = service
        self.retry_after_seconds = retry_after_seconds


class ObjectMissing(Exception):
    """The bucket has no object of that key."""
