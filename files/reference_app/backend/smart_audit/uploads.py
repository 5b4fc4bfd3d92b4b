"""What may be uploaded: UTF-8 text of a known kind, not empty, not too long."""

import codecs
import hashlib
import re
import unicodedata
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import BinaryIO

from smart_audit.middleware import too_large
from smart_audit.problems import Problem

CONTENT_TYPES = ("text/plain", "text/markdown", "text/x-markdown", "text/csv")
# Browsers do not know every suffix and then send no type, or say "bytes".
_TYPES_BY_SUFFIX = {
    ".csv": "text/csv",
    ".log": "text/plain",
    ".markdown": "text/markdown",
    ".md": "text/markdown",
    ".text": "text/plain",
    ".txt": "text/plain",
}
_ACCEPTED = "Plain text, Markdown and CSV in UTF-8 are accepted."
# Postgres' text cannot hold NUL; the others do not occur in text that people write.
_BINARY = re.compile("[\x00-\x08\x0e-\x1a\x1c-\x1f]")
_LONGEST_FILENAME = 200
_CHUNK_BYTES = 64 * 1024


@dataclass(frozen=True)
class Checked:
    """What is known about an upload after it was read once: size in bytes, SHA-256, kind, cleaned name."""

    size_bytes: int
    sha256: bytes
    content_type: str
    filename: str


def clean_filename(name: str) -> str:
    """Return the last part of `name` without control characters, shortened; `document.txt` if nothing remains."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    printable = "".join(character for character in last if unicodedata.category(character)[0] != "C").strip()
    return printable[:_LONGEST_FILENAME] or "document.txt"


def content_type(declared: str | None, filename: str) -> str:
    """Return the media type of an upload.

    Raises:
        Problem: 415, it is none that is accepted.
    """
    media_type, *parameters = (part.strip().lower() for part in (declared or "").split(";"))
    for parameter in parameters:
        if parameter.startswith("charset=") and parameter[8:].strip('"') not in ("utf-8", "utf8", "us-ascii"):
            raise Problem(415, "unsupported-type", f"The file's encoding is {parameter[8:]}. {_ACCEPTED}")
    if media_type in CONTENT_TYPES:
        return media_type
    by_suffix = _TYPES_BY_SUFFIX.get(PurePosixPath(filename).suffix.lower())
    if media_type in ("", "application/octet-stream") and by_suffix:
        return by_suffix
    raise Problem(415, "unsupported-type", f"The file's type is {media_type or 'unknown'}. {_ACCEPTED}")


def check(body: BinaryIO, declared_type: str | None, name: str, max_bytes: int) -> Checked:
    """Read `body` once, piece by piece, and return what it is.

    Raises:
        Problem: 413 too long, 415 another kind, 422 empty or not UTF-8.
    """
    filename = clean_filename(name)
    media_type = content_type(declared_type, filename)
    decoder = codecs.getincrementaldecoder("utf-8")()
    digest = hashlib.sha256()
    size = 0
    blank = True
    body.seek(0)
    while True:
        piece = body.read(_CHUNK_BYTES)
        size += len(piece)
        if size > max_bytes:
            raise too_large(max_bytes)
        digest.update(piece)
        try:
            text = decoder.decode(piece, final=not piece)
        except UnicodeDecodeError:
            raise Problem(422, "not-utf-8", f"The file is not UTF-8 text. {_ACCEPTED}") from None
        if _BINARY.search(text):
            raise Problem(415, "binary", f"The file is binary, not text. {_ACCEPTED}")
        blank = blank and not text.strip("\ufeff \t\r\n")
        if not piece:
            break
    if blank:
        raise Problem(422, "empty", "The file is empty: there is nothing to search in it.")
    return Checked(size, digest.digest(), media_type, filename)
