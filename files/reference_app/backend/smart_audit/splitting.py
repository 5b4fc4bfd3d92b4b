"""Splitting a document into passages of about a paragraph."""

import re
from collections.abc import Iterator

PASSAGE_CHARACTERS = 700
# Shorter paragraphs (headings, list entries) join the next one: alone they say too little to be found, and too little to read.
_SHORT_CHARACTERS = 160

_PARAGRAPH_END = re.compile(r"\n[ \t\r]*\n\s*")
_SENTENCE_END = re.compile(r"(?<=[.!?…。])\s+")


def _paragraphs(text: str) -> Iterator[str]:
    start = 0
    for match in _PARAGRAPH_END.finditer(text):
        yield text[start : match.start()].strip()
        start = match.end()
    yield text[start:].strip()


def _pieces(paragraph: str, limit: int) -> Iterator[str]:
    """Yield pieces of at most `limit` characters, cut at sentence ends, else between words, else anywhere."""
    if len(paragraph) <= limit:
        yield paragraph
        return
    start = 0
    while len(paragraph) - start > limit:
        window = paragraph[start : start + limit]
        ends = [match.end() for match in _SENTENCE_END.finditer(window)]
        cut = ends[-1] if ends else max(window.rfind(" "), window.rfind("\n")) + 1
        cut = cut if cut > 0 else limit
        yield paragraph[start : start + cut].strip()
        start += cut
    yield paragraph[start:].strip()


def split(text: str, limit: int = PASSAGE_CHARACTERS) -> Iterator[str]:
    """Yield the passages of `text` in order, each non-empty and at most `limit` characters long.

    A generator, so that the memory a long document needs does not depend on its length.
    """
    gathered = ""
    for paragraph in _paragraphs(text):
        for piece in _pieces(paragraph, limit):
            if not piece:
                continue
            # A Markdown heading belongs to what follows it, never to what went before.
            complete = len(gathered) >= _SHORT_CHARACTERS or piece.startswith("#")
            if gathered and (complete or len(gathered) + 2 + len(piece) > limit):
                yield gathered
                gathered = piece
            else:
                gathered = f"{gathered}\n\n{piece}" if gathered else piece
    if gathered:
        yield gathered
