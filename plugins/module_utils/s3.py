"""A client of S3 (signature version 4) for modules and tools, with nothing but Python's standard library."""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import http.client
import secrets
import socket
import ssl
import urllib.parse
import xml.etree.ElementTree as ET
from dataclasses import dataclass

SERVICE_ERRORS = {
    "InvalidAccessKeyId": ("credentials", "the endpoint does not know this access key"),
    "SignatureDoesNotMatch": ("credentials", "the secret key does not belong to this access key"),
    "AccessDenied": ("permissions", "give this access key the right to do it"),
    "AllAccessDisabled": ("permissions", "give this access key the right to do it"),
    "NoSuchBucket": ("bucket", "make the bucket, or write the name of one that is there"),
    "BucketAlreadyExists": ("bucket", "the name belongs to somebody else: write another one"),
    "InvalidBucketName": ("bucket", "write a name of 3 to 63 lower-case letters, digits, dots and hyphens"),
    "PermanentRedirect": ("region", "write the region and the endpoint that the bucket is in"),
    "AuthorizationHeaderMalformed": ("region", "write the region that the bucket is in"),
    "RequestTimeTooSkewed": ("clock", "set the host's clock"),
}
NOT_READY = (500, 502, 503)


class Refused(Exception):
    """Something that a person can put right, as one sentence."""


class Unreachable(Refused):
    """The service takes no connection, or is not ready; it may be a moment later."""


@dataclass(frozen=True)
class Answer:
    """What the service said."""

    status: int
    code: str
    body: bytes


@dataclass(frozen=True)
class Service:
    """One S3 endpoint, seen with one key."""

    endpoint: str
    region: str
    access_key: str
    secret_key: str
    ca_file: str
    path_style: bool
    timeout_seconds: int
    ca: str = ""

    def ask(self, method: str, bucket: str, key: str = "", query: dict[str, str] | None = None, body: bytes = b"") -> Answer:
        """Send one signed request.

        Args:
            method: HTTP method.
            bucket: bucket's name.
            key: object's key; empty for the bucket itself.
            query: parameters of the query.
            body: payload.

        Returns:
            The answer, whatever its status.

        Raises:
            Refused: there was no answer.
        """
        url = urllib.parse.urlsplit(self.endpoint)
        host = url.netloc if self.path_style else f"{bucket}.{url.netloc}"
        path = urllib.parse.quote((f"/{bucket}" if self.path_style else "") + f"/{key}", safe="/~-._")
        encoded = "&".join(
            f"{urllib.parse.quote(name, safe='~')}={urllib.parse.quote(value, safe='~')}" for name, value in sorted((query or {}).items())
        )
        headers = self._sign(method, host, path, encoded, body)
        try:
            connection = self._connect(url.scheme, host)
            try:
                connection.request(method, path + (f"?{encoded}" if encoded else ""), body=body, headers=headers)
                answer = connection.getresponse()
                content = answer.read()
            finally:
                connection.close()
        except socket.gaierror as error:
            raise Refused(
                f"{self.endpoint} has no address (DNS: {error.strerror}): correct the endpoint's name, or the host's name resolution."
            ) from error
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError) as error:  # a proxy in front of a service that is not there yet
            raise Unreachable(
                f"{self.endpoint} closed the connection at once (connection): correct the endpoint, or start the service."
            ) from error
        except ssl.SSLError as error:
            reason = getattr(error, "verify_message", "") or error.reason or str(error)
            raise Refused(
                f"{self.endpoint} failed the TLS check ({reason}): name the authority that signed its certificate, "
                "and an address that the certificate holds."
            ) from error
        except TimeoutError as error:
            raise Unreachable(
                f"{self.endpoint} did not answer in {self.timeout_seconds} s (connection): correct the endpoint, or let the host reach it."
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(
                f"{self.endpoint} took no request (connection: {getattr(error, 'strerror', None) or str(error) or type(error).__name__}): "
                "correct the endpoint, or start the service."
            ) from error
        return Answer(answer.status, _error_code(content) if answer.status >= 300 else "", content)

    def _connect(self, scheme: str, host: str) -> http.client.HTTPConnection:
        if scheme == "http":
            return http.client.HTTPConnection(host, timeout=self.timeout_seconds)
        try:
            context = ssl.create_default_context(cafile=self.ca_file or None, cadata=self.ca or None)
        except (OSError, ssl.SSLError) as error:
            raise Refused(f"{self.ca_file} is no readable file of certificates (TLS: {error}): write the path of a PEM file.") from error
        return http.client.HTTPSConnection(host, timeout=self.timeout_seconds, context=context)

    def _sign(self, method: str, host: str, path: str, query: str, body: bytes) -> dict[str, str]:
        now = dt.datetime.now(dt.UTC)
        stamp, day = now.strftime("%Y%m%dT%H%M%SZ"), now.strftime("%Y%m%d")
        digest = hashlib.sha256(body).hexdigest()
        signed = "host;x-amz-content-sha256;x-amz-date"
        canonical = f"{method}\n{path}\n{query}\nhost:{host}\nx-amz-content-sha256:{digest}\nx-amz-date:{stamp}\n\n{signed}\n{digest}"
        scope = f"{day}/{self.region}/s3/aws4_request"
        text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
        secret = f"AWS4{self.secret_key}".encode()
        for part in (day, self.region, "s3", "aws4_request"):
            secret = hmac.new(secret, part.encode(), hashlib.sha256).digest()
        signature = hmac.new(secret, text.encode(), hashlib.sha256).hexdigest()
        return {
            "Host": host,
            "x-amz-content-sha256": digest,
            "x-amz-date": stamp,
            "Authorization": f"AWS4-HMAC-SHA256 Credential={self.access_key}/{scope}, SignedHeaders={signed}, Signature={signature}",
        }

    def refusal(self, deed: str, bucket: str, answer: Answer) -> Refused:
        """Say in one sentence what was refused, by whom, and what to do."""
        kind, way = SERVICE_ERRORS.get(answer.code, ("service", "look it up in the service's documentation"))
        if not answer.code and answer.status in (401, 403):
            kind, way = "permissions", "give this access key the right to do it"
        sentence = (
            f"{self.endpoint} refused to {deed} the bucket {bucket} with the access key {self.access_key}: "
            f"HTTP {answer.status}, {answer.code or 'no error code'} ({kind}): {way}."
        )
        return Unreachable(sentence) if answer.status in NOT_READY else Refused(sentence)

    def exists(self, bucket: str) -> bool:
        """Say whether a bucket is there."""
        answer = self.ask("GET", bucket, query={"list-type": "2", "max-keys": "1"})
        if answer.status == 404:
            return False
        if answer.status != 200:
            raise self.refusal("list", bucket, answer)
        return True

    def make(self, bucket: str) -> None:
        """Make a bucket."""
        place = "" if self.region == "us-east-1" else f"<LocationConstraint>{self.region}</LocationConstraint>"
        body = f"<CreateBucketConfiguration>{place}</CreateBucketConfiguration>".encode() if place else b""
        answer = self.ask("PUT", bucket, body=body)
        if answer.status != 200 and answer.code != "BucketAlreadyOwnedByYou":
            raise self.refusal("make", bucket, answer)

    def probe(self, bucket: str, folder: str = "", *, write: bool) -> None:
        """Put, read back and delete an object in a folder of the bucket; or only ask for one that is not there."""
        key, content = f"{folder}/.holdfast-probe-{secrets.token_hex(8)}".lstrip("/"), secrets.token_bytes(32)
        if not write:
            answer = self.ask("GET", bucket, key)
            # S3 hides what is missing from a key that may not list.
            if (answer.status not in (200, 404) and answer.code != "AccessDenied") or answer.code == "NoSuchBucket":
                raise self.refusal("read an object in", bucket, answer)
            return
        answer = self.ask("PUT", bucket, key, body=content)
        if answer.status != 200:
            raise self.refusal("put an object into", bucket, answer)
        answer = self.ask("GET", bucket, key)
        if answer.status != 200:
            raise self.refusal("read an object in", bucket, answer)
        if answer.body != content:
            raise Refused(f"{self.endpoint} gave back another object than was put into the bucket {bucket}: look for a proxy in between.")
        answer = self.ask("DELETE", bucket, key)
        if answer.status not in (200, 204):
            raise self.refusal("delete an object in", bucket, answer)


def _error_code(content: bytes) -> str:
    try:
        # The caller trusts the endpoint with its data; what it says is parsed without entities from outside.
        return (ET.fromstring(content).findtext("{*}Code") or "").strip()  # noqa: S314
    except ET.ParseError:
        return ""
