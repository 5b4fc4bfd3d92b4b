"""rclone, with a configuration that lies in memory for as long as it is used, and secrets on no command line."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast import postgres
from holdfast.failure import Failure

SYSTEM_AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
# A stream of unknown length is sent in parts of this size, of which S3 takes 10,000: 156 GB.
PART_MB = 16
COMMAND_SECONDS = 600
TRANSFER_SECONDS = 6 * 3600
OPTIONS = (
    "--retries", "3", "--low-level-retries", "5", "--contimeout", "10s", "--timeout", "60s", "--stats", "0", "--use-server-modtime",
)  # fmt: skip
# rclone's own exit codes.
DIRECTORY_NOT_FOUND, FILE_NOT_FOUND = 3, 4


@dataclass(frozen=True)
class Bucket:
    """A bucket of any S3 service.

    Attributes:
        endpoint: address of the service.
        region: region that requests are signed for.
        bucket: name of the bucket.
        access_key: access key.
        secret_key: its secret.
        ca: authority of the service's certificate, in PEM, or the file that has it; the system's where empty.
    """

    endpoint: str
    region: str
    bucket: str
    access_key: str
    secret_key: str
    ca: str = ""

    def authority(self) -> str:
        """Return the authority in PEM; nothing where it is one of the system's.

        Raises:
            Failure: its file can't be read.
        """
        if not self.ca.startswith("/"):
            return self.ca
        try:
            return Path(self.ca).read_text(encoding="ascii")
        except OSError as error:
            raise Failure(f"{self.ca}, the authority of {self.endpoint}, can't be read ({error.strerror}): correct its path.") from error

    def section(self, name: str) -> str:
        """Return it as a remote of rclone's configuration."""
        endpoint = self.endpoint if "://" in self.endpoint else f"https://{self.endpoint}"
        return (
            f"[{name}]\ntype = s3\nprovider = Other\nendpoint = {endpoint}\nregion = {self.region}\naccess_key_id = {self.access_key}\n"
            f"secret_access_key = {self.secret_key}\nforce_path_style = true\nno_check_bucket = true\nchunk_size = {PART_MB}Mi\n"
            "upload_concurrency = 2\n"
        )


class Rclone:
    """rclone with its remotes: each bucket by its name, and an encrypted folder of one of them."""

    def __init__(self, folder: Path) -> None:
        """Take the folder with the configuration."""
        self._options = ["--config", str(folder / "rclone.conf"), "--ca-cert", str(folder / "ca.pem"), *OPTIONS]

    def words(self, *words: str) -> list[str]:
        """Return a command line."""
        return ["rclone", *words, *self._options]

    def run(self, *words: str, timeout_seconds: float = COMMAND_SECONDS, missing: bool = False, stdin: str = "") -> str:
        """Run a command and return what it printed.

        Args:
            words: the command.
            timeout_seconds: ended after this many seconds.
            missing: whether a folder or file that is not there is as good as an empty one.
            stdin: what it reads.

        Raises:
            Failure: rclone failed; the text is its own reason.
        """
        done = _run(self.words(*words), timeout_seconds, stdin.encode())
        if done.returncode and not (missing and done.returncode in (DIRECTORY_NOT_FOUND, FILE_NOT_FOUND)):
            raise Failure(reason(words[0], done.stderr.decode("utf-8", "replace")))
        return done.stdout.decode()

    def read(self, path: str) -> bytes:
        """Return what a file holds.

        Raises:
            Failure: it is not there, or can't be decrypted.
        """
        done = _run(self.words("cat", path), TRANSFER_SECONDS)
        if done.returncode:
            raise Failure(reason("cat", done.stderr.decode("utf-8", "replace")))
        return done.stdout

    def write(self, path: str, content: bytes) -> None:
        """Write a file as a whole.

        Raises:
            Failure: the bucket refused.
        """
        done = _run(self.words("rcat", path), TRANSFER_SECONDS, content)
        if done.returncode:
            raise Failure(reason("rcat", done.stderr.decode("utf-8", "replace")))

    def stream(self, producer: Sequence[str], path: str) -> None:
        """Write what a program of the database's prints, while it prints it; where the program fails the file is taken away again.

        Raises:
            Failure: the program or the bucket failed.
        """
        with (
            tempfile.TemporaryFile() as said,
            tempfile.TemporaryFile() as refused,
            subprocess.Popen(
                producer, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said, cwd="/", **postgres.identity()
            ) as source,
            subprocess.Popen(
                self.words("rcat", path), stdin=source.stdout, stdout=subprocess.DEVNULL, stderr=refused, env=environment()
            ) as target,
        ):
            if source.stdout:
                source.stdout.close()  # so that the program learns of it when rclone ends early
            try:
                sent = target.wait(TRANSFER_SECONDS)
                made = source.wait(COMMAND_SECONDS)
            except subprocess.TimeoutExpired as error:
                source.kill()
                target.kill()
                raise Failure(f"{path} had not been written after {TRANSFER_SECONDS / 3600:.0f} hours.") from error
            for file in (said, refused):
                file.seek(0)
            if sent:
                raise Failure(reason("rcat", refused.read().decode("utf-8", "replace")))
            if made:
                self.run("deletefile", path)
                raise Failure(f"{producer[0]} failed: {_last(said.read().decode('utf-8', 'replace'))}")

    def delete(self, path: str) -> None:
        """Delete the files of a folder, and no version of them.

        `purge` would go for the versions too, which a bucket that keeps the past refuses.

        Raises:
            Failure: the bucket refused.
        """
        self.run("delete", path, timeout_seconds=TRANSFER_SECONDS, missing=True)

    def entries(self, path: str, *, recursive: bool = False) -> list[dict[str, Any]]:
        """List a folder, which may be missing: for each entry `Path`, `Size`, `IsDir` and `ModTime`."""
        # A type would be asked for object by object.
        words = ["lsjson", path, "--no-mimetype", *(["--recursive", "--files-only"] if recursive else [])]
        found: list[dict[str, Any]] = json.loads(self.run(*words, missing=True) or "[]")
        return found

    def names(self, path: str) -> list[str]:
        """Name what a folder holds, sorted."""
        return sorted(each["Path"] for each in self.entries(path))


@contextmanager
def rclone(buckets: dict[str, Bucket], encrypted: str, remote: str, passphrase: str) -> Iterator[Rclone]:
    """Configure rclone for as long as the context lasts.

    Args:
        buckets: the remotes by name.
        encrypted: name of the encrypted remote.
        remote: bucket and folder that carry it, such as `bucket:name/folder`.
        passphrase: encrypts names and content there.

    Raises:
        Failure: rclone is not installed.
    """
    memory = next((path for path in ("/run", "/dev/shm") if os.access(path, os.W_OK)), None)  # noqa: S108 - a folder of its own, for us alone
    with tempfile.TemporaryDirectory(dir=os.environ.get("RUNTIME_DIRECTORY", memory), prefix="holdfast-rclone-") as name:
        folder = Path(name)
        done = _run(["rclone", "obscure", "-"], COMMAND_SECONDS, passphrase.encode())
        sections = [bucket.section(each) for each, bucket in buckets.items()]
        sections.append(f"[{encrypted}]\ntype = crypt\nremote = {remote}\npassword = {done.stdout.decode().strip()}\n")
        authorities = [bucket.authority() for bucket in buckets.values()]
        system = SYSTEM_AUTHORITIES.read_text(encoding="utf-8") if SYSTEM_AUTHORITIES.exists() else ""
        (folder / "ca.pem").write_text("\n".join([system, *authorities]), encoding="utf-8")
        config = folder / "rclone.conf"
        config.touch(mode=0o600)
        config.write_text("\n".join(sections), encoding="utf-8")
        yield Rclone(folder)


def reason(action: str, said: str) -> str:
    """Return why rclone failed, in one sentence."""
    known = {
        "InvalidAccessKeyId": "the bucket's service does not know the access key",
        "SignatureDoesNotMatch": "the secret key does not belong to the access key",
        "AccessDenied": "the access key may not do this",
        "NoSuchBucket": "there is no such bucket",
        "certificate signed by unknown authority": "the authority of the bucket's certificate is another one",
        "no such host": "the name of the bucket's service is unknown",
        "connection refused": "the bucket's service takes no connection",
        "i/o timeout": "the bucket's service does not answer",
        "no space left": "the disk is full",
    }
    plain = next((text for word, text in known.items() if word in said), "")
    return f"rclone ({action}) failed: {plain or _last(said)}."


def environment() -> dict[str, str]:
    """Return the environment without what would speak to rclone or to its S3 library besides the configuration."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RCLONE_"))}


def _run(words: Sequence[str], timeout_seconds: float, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(words, check=False, capture_output=True, input=stdin, timeout=timeout_seconds, env=environment())
    except FileNotFoundError as error:
        raise Failure("rclone is not installed: on the host `ansible-playbook site.yml --tags offsite` brings it.") from error
    except subprocess.TimeoutExpired as error:
        raise Failure(f"rclone {words[1]} had not ended after {timeout_seconds:.0f} s.") from error


def _last(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return (lines[-1] if lines else "it gave no reason").rstrip(".")
