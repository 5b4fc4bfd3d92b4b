"""Embedding by feature hashing: no model to download, the same vector on every machine and Python version.

Each word, and each group of three letters in it, is hashed to one of 384 dimensions and a sign. Passages that share words, or
words of one stem, point in similar directions. `hashlib` is used because Python's own `hash()` differs from run to run.
"""

import hashlib
import math
import re
import unicodedata
from collections import Counter
from functools import lru_cache

DIMENSIONS = 384

_WORD = re.compile(r"[^\W_]+")
_LONGEST_WORD = 64
_TRIGRAM_WEIGHT = 0.3
# Words that say nothing about a subject would otherwise bring any two English passages near one another.
_STOP_TEXT = """
    a about after all an and any are as at be been but by can could did do does for from had has have he her his how i if in into
    is it its me my no not of on or our she should so than that the their them then there these they this those to was we were
    what when where which who why will with would you your
"""
_STOP_WORDS = frozenset(_STOP_TEXT.split())


@lru_cache(maxsize=16_384)
def _slot(feature: str) -> tuple[int, float]:
    digest = int.from_bytes(hashlib.blake2b(feature.encode(), digest_size=8).digest(), "big")
    return (digest >> 1) % DIMENSIONS, 1.0 if digest & 1 else -1.0


@lru_cache(maxsize=4_096)
def _trigrams(word: str) -> tuple[str, ...]:
    padded = f"^{word}$"
    return tuple(padded[i : i + 3] for i in range(len(padded) - 2))


def words(text: str) -> list[str]:
    """Return the words of `text` in order, normalised (NFKC, case folded), each at most 64 characters long."""
    return [word[:_LONGEST_WORD] for word in _WORD.findall(unicodedata.normalize("NFKC", text).casefold())]


def embed(text: str) -> list[float] | None:
    """Return a vector of length 1 with 384 components for `text`, or None where it has no word at all.

    None, not zeros: the cosine distance to a zero vector is not a number, and an index leaves such rows out.
    """
    counted = Counter(words(text))
    if not counted:
        return None
    telling = {word: count for word, count in counted.items() if word not in _STOP_WORDS} or counted
    vector = [0.0] * DIMENSIONS
    for word, count in telling.items():
        weight = 1.0 + math.log(count)
        index, sign = _slot(word)
        vector[index] += sign * weight
        for trigram in _trigrams(word):
            index, sign = _slot(trigram)
            vector[index] += sign * weight * _TRIGRAM_WEIGHT
    length = math.sqrt(sum(component * component for component in vector))
    if length < 1e-9:
        # Features that cancel each other out exactly: fall back to one dimension, so that the passage can still be found.
        vector[_slot("^".join(telling))[0]] = length = 1.0
    return [component / length for component in vector]
