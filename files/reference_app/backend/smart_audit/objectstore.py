"""A bucket of any S3 service: put, get, delete, and a probe.

Four requests, path-style, signed with AWS Signature Version 4. An SDK would cost more resident memory than the rest of the
process together.
"""

import hashlib
import hmac
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import BinaryIO
from urllib.parse import quote, urlsplit

import urllib3

from smart_audit.errors import ObjectMissing, Unavailable
from smart_audit.settings import ObjectStoreSettings

_EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()
_CONNECT_TIMEOUT_SECONDS = 3.0
_READ_TIMEOUT_SECONDS = 15.0
_PROBE_TIMEOUT_SECONDS = 2.0
_CHUNK_BYTES = 64 * 1024


def _hmac(key: bytes, message: str) -> bytes:
    return hmac.new(key, message.encode(), hashlib.sha256).digest()


def sign(
    method: str,
    url: str,
    headers: Mapping[str, str],
    payload_sha256: str,
    settings: ObjectStoreSettings,
    now: datetime,
) -> dict[str, str]:
    """Return `headers` with those that authenticate the request (AWS Signature Version 4).

    Args:
        method: HTTP method.
        url: full URL, its path already percent-encoded, without a query.
        headers: headers to sign and send besides `host`.
        payload_sha256: SHA-256 of the body in hexadecimal digits.
        settings: keys and region.
        now: time of the request, in UTC.
    """
    parts = urlsplit(url)
    stamp = now.strftime("%Y%m%dT%H%M%SZ")
    scope = f"{stamp[:8]}/{settings.region}/s3/aws4_request"
    signed = {
        **{name.lower(): value for name, value in headers.items()},
        "host": parts.netloc,
        "x-amz-content-sha256": payload_sha256,
        "x-amz-date": stamp,
    }
    names = ";".join(sorted(signed))
    canonical = "\n".join(
        (method, parts.path, "", *(f"{name}:{signed[name].strip()}" for name in sorted(signed)), "", names, payload_sha256)
    )
    to_sign = "\n".join(("AWS4-HMAC-SHA256", stamp, scope, hashlib.sha256(canonical.encode()).hexdigest()))
    key = f"AWS4{settings.secret_key}".encode()
    for step in scope.split("/"):
        key = _hmac(key, step)
    signature = _hmac(key, to_sign).hex()
    signed["authorization"] = f"AWS4-HMAC-SHA256 Credential={settings.access_key}/{scope}, SignedHeaders={names}, Signature={signature}"
    return signed


class ObjectStore:
    """One bucket."""

    def __init__(self, settings: ObjectStoreSettings) -> None:
        self._settings = settings
        # Without retries of its own: a body that is a stream cannot be sent twice, and callers know what to repeat.
        self._http = urllib3.PoolManager(
            maxsize=8,
            retries=False,
            ca_certs=settings.ca_file,
            cert_reqs="CERT_REQUIRED",
            timeout=urllib3.Timeout(connect=_CONNECT_TIMEOUT_SECONDS, read=_READ_TIMEOUT_SECONDS),
        )

    def _request(
        self,
        method: str,
        key: str | None,
        body: BinaryIO | None = None,
        body_sha256: str = _EMPTY_SHA256,
        headers: Mapping[str, str] | None = None,
        read_timeout_seconds: float = _READ_TIMEOUT_SECONDS,
    ) -> urllib3.BaseHTTPResponse:
        path = f"/{self._settings.bucket}" + (f"/{quote(key, safe='/-_.~')}" if key else "")
        url = self._settings.endpoint_url + path
        for last_try in (False, True):
            signed = sign(method, url, headers or {}, body_sha256, self._settings, datetime.now(timezone.utc))
            try:
                if body:
                    body.seek(0)
                response = self._http.request(
                    method,
                    url,
                    body=body,
                    headers=signed,
                    preload_content=False,
                    timeout=urllib3.Timeout(connect=_CONNECT_TIMEOUT_SECONDS, read=read_timeout_seconds),
                )
                break
            except urllib3.exceptions.ProtocolError as error:
                # Mostly a kept connection that the service closed while it was idle. Every request here may be repeated.
                if last_try:
                    raise Unavailable("object store", f"{method}: {error}") from error
            except urllib3.exceptions.HTTPError as error:
                raise Unavailable("object store", f"{method}: {error}") from error
        if response.status == 404 and key:
            response.drain_conn()
            response.release_conn()
            raise ObjectMissing(key)
        if response.status >= 300:
            detail = response.read(300).decode(errors="replace")
            response.close()
            # A refused key or a missing bucket counts as an outage, too: the operator's to mend, not the document's fault.
            raise Unavailable("object store", f"{method} was answered with {response.status}: {detail}", 5)
        return response

    def put(self, key: str, body: BinaryIO, size_bytes: int, sha256: str, content_type: str) -> None:
        """Store `body` (seekable, `size_bytes` long, with that SHA-256 in hexadecimal digits) under `key`.

        Raises:
            Unavailable: the service does not answer or refuses.
        """
        headers = {"content-length": str(size_bytes), "content-type": content_type}
        self._request("PUT", key, body, sha256, headers).read()

    def get(self, key: str, maximum_bytes: int) -> bytes:
        """Return the object, which must not be longer than `maximum_bytes`.

        Raises:
            ObjectMissing: there is none.
            ValueError: it is longer.
            Unavailable: the service does not answer, refuses, or stops in the middle.
        """
        response = self._request("GET", key)
        parts: list[bytes] = []
        size = 0
        try:
            for part in response.stream(_CHUNK_BYTES):
                size += len(part)
                if size > maximum_bytes:
                    raise ValueError(f"the object is longer than {maximum_bytes} bytes")
                parts.append(part)
        except urllib3.exceptions.HTTPError as error:
            raise Unavailable("object store", f"GET: {error}") from error
        finally:
            response.close()
        return b"".join(parts)

    def delete(self, key: str) -> None:
        """Remove the object; it is no error if there is none.

        Raises:
            Unavailable: the service does not answer or refuses.
        """
        try:
            self._request("DELETE", key).read()
        except ObjectMissing:
            return

    def probe(self) -> None:
        """Ask whether the bucket is there and our key is accepted.

        Raises:
            Unavailable: it is not.
        """
        self._request("HEAD", None, read_timeout_seconds=_PROBE_TIMEOUT_SECONDS).read()
