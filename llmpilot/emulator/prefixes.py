"""What the emulator keeps of prompts and answers: what of a prompt an engine would not compute again.

Content is told by chained keys of pages, each of all that is before its end, as vLLM's block hashes.
"""

from array import array

from llmpilot.emulator.tokens import CHARACTERS_PER_TOKEN, FIRST_ID, MASK, TEXTS
from llmpilot.simulator.prefix_cache import Keys, PrefixCache

PAGE_TOKENS = 16
"""Of the cache under fixed timing; a simulated engine has pages of its own."""

_ID_BYTES = 4


class Words:
    """A prompt and the answer that goes on from it: ids, or text of which a token is 4 characters.

    `first` is where in the ring of the emulator's words the answer begins, `made` how many tokens it has.
    """

    __slots__ = ("_first", "_keys", "_made", "_prompt")

    def __init__(self, prompt: str | list[int], first: int, made: int) -> None:
        self._prompt, self._first, self._made = prompt, first, made
        self._keys: tuple[int, list[int]] = (0, [])  # of pages so long

    def page_keys(self, page_tokens: int) -> Keys:
        """Return a key for each whole page of prompt and answer; see `simulator.prefix_cache.Content`."""
        if self._keys[0] == page_tokens:
            return self._keys[1]
        answer = ((self._first + k) & MASK for k in range(self._made))
        content: str | bytes
        if isinstance(self._prompt, str):
            content = self._prompt + b"".join(TEXTS[word] for word in answer).decode()
            step = page_tokens * CHARACTERS_PER_TOKEN
        else:
            ids = array("I", self._prompt)
            ids.extend(FIRST_ID + word for word in answer)
            content, step = ids.tobytes(), page_tokens * _ID_BYTES
        # One hash after the other: the same page behind another beginning is another one.
        keys: list[int] = []
        key = page_tokens
        for end in range(step, len(content) + 1, step):
            key = hash((key, content[end - step : end]))
            keys.append(key)
        self._keys = page_tokens, keys
        return keys


class KeptPrefixes:
    """A prefix cache beside an engine of fixed timing: what would be found, though nothing is saved by it.

    It holds `tokens` at most, the least recently used lost first, and as in engines neither a page that is
    not whole nor the last token of an answer, which nothing was computed from; of a prompt, the last token
    is always computed.
    """

    def __init__(self, tokens: int) -> None:
        self._cache = PrefixCache(tokens // PAGE_TOKENS)

    def find(self, words: Words, prompt_tokens: int) -> int:
        """Return how many tokens of a prompt are kept."""
        keys = words.page_keys(PAGE_TOKENS)[: (prompt_tokens - 1) // PAGE_TOKENS]
        return self._cache.found(keys) * PAGE_TOKENS

    def keep(self, words: Words, tokens: int) -> None:
        """Keep the first `tokens` tokens of a prompt and its answer, so far as there is room."""
        cache = self._cache
        keys = words.page_keys(PAGE_TOKENS)[: tokens // PAGE_TOKENS]
        known = cache.found(keys)
        cache.use(keys[:known])
        new = keys[known : known + cache.free]
        cache.take(len(new))
        cache.fill(new)
        cache.leave(keys[: known + len(new)])
