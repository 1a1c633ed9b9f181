"""What a token is to a server without a tokenizer, and the texts and ids of the tokens that it makes.

The rule: text counts one token per 4 characters, rounded up, at least one; a chat message counts 4 more
for its role. Token ids count themselves. Every generated token is a text of exactly 4 characters, so an
answer that comes back as a prompt counts what it counted.
"""

from collections.abc import Sequence
from zlib import crc32

CHARACTERS_PER_TOKEN = 4
TOKENS_PER_MESSAGE = 4
FIRST_ID = 256
_CONSONANTS, _VOWELS, _ENDINGS = "bcdfghjklmnprstv", "aeio", "lnrt"
TEXTS = tuple(f" {a}{b}{c}".encode() for a in _CONSONANTS for b in _VOWELS for c in _ENDINGS)
"""256 texts; token w has the id FIRST_ID + w."""
IDS = tuple(str(FIRST_ID + word).encode() for word in range(len(TEXTS)))
MASK = len(TEXTS) - 1
SMALLEST_VOCABULARY = FIRST_ID + len(TEXTS)


def count_text(text: str) -> int:
    """Return how many tokens a text counts."""
    return max(1, -(-len(text) // CHARACTERS_PER_TOKEN))


def ids_of_text(text: str, vocabulary_size: int) -> list[int]:
    """Return made-up but reproducible ids for the tokens of a text: for `return_token_ids` only."""
    step = CHARACTERS_PER_TOKEN
    pieces: Sequence[str] = [text[at : at + step] for at in range(0, len(text), step)] or [""]
    return [crc32(piece.encode("utf-8", "surrogatepass")) % vocabulary_size for piece in pieces]
