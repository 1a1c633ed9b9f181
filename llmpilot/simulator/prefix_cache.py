"""A paged KV cache that finds prefixes again: blocks by what they hold, and who loses them first.

As in vLLM (v1/core/block_pool.py and kv_cache_manager.py of 0.19): one pool for what runs and for what is
kept. Blocks that a request frees keep their content and queue up, its last ones first; whoever needs blocks
takes them from the head of that queue. So what was used least recently is lost first, of a prefix its end
before its beginning, and nothing that a running request uses. What pages hold is told by opaque keys.
"""

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import Protocol

Keys = Sequence[Hashable]


class Content(Protocol):
    """What a request's prompt and its answer hold, as far as a cache needs to know it."""

    def page_keys(self, page_tokens: int) -> Keys:
        """Return a key for each whole page of `page_tokens` tokens of prompt and answer, in order.

        Two keys are equal if all tokens up to the ends of their pages are, and else never.
        """
        ...


class PrefixCache:
    """`free` of `total` blocks, of which some still hold pages that can be found again.

    A page is `blocks_per_page` blocks. A request's blocks are pages that it uses together with others
    (`use`, `fill`), or blocks that nobody knows by a key (`take`).
    """

    def __init__(self, total: int, blocks_per_page: int = 1) -> None:
        self.total = self.free = total
        self.blocks_per_page = blocks_per_page
        self._empty = total  # free blocks that hold nothing: they are taken first
        self._queue: OrderedDict[Hashable, int] = OrderedDict()  # the other free ones, in blocks
        self._users: dict[Hashable, int] = {}  # of each page in use

    def found(self, keys: Keys) -> int:
        """Return how many pages of these keys, from the first on, are in the cache."""
        users, queue = self._users, self._queue
        pages = 0
        for key in keys:
            if key not in users and key not in queue:
                break
            pages += 1
        return pages

    def in_use(self, keys: Keys) -> int:
        """Return how many pages of these keys, from the first on, are used by a request now."""
        pages = 0
        for key in keys:
            if key not in self._users:
                break
            pages += 1
        return pages

    def shared(self, keys: Keys) -> int:
        """Return how many of these pages, all of them in use, more than one request uses."""
        return sum(self._users[key] > 1 for key in keys)

    def take(self, blocks: int) -> None:
        """Take free blocks: empty ones, and then those that were freed first, with what they hold."""
        self.free -= blocks
        self._empty -= blocks
        while self._empty < 0:
            _, freed = self._queue.popitem(last=False)
            self._empty += freed

    def give(self, blocks: int) -> None:
        """Free blocks that hold nothing that could be found again."""
        if blocks:
            self.free += blocks
            self._queue[object()] = blocks

    def use(self, keys: Keys) -> None:
        """Let one more request use these pages, all of which were `found`."""
        users = self._users
        for key in keys:
            if key in users:
                users[key] += 1
            else:
                self.free -= self._queue.pop(key)
                users[key] = 1

    def fill(self, keys: Keys) -> None:
        """Let blocks that a request took hold these pages, so that they are found.

        Where another one was quicker, both use its page, and the blocks of this one are free.
        """
        users, queue = self._users, self._queue
        for key in keys:
            if key in users or key in queue:
                self.use((key,))
                self.give(self.blocks_per_page)
            else:
                users[key] = 1

    def leave(self, keys: Keys) -> None:
        """Let one request fewer use these pages; those that nobody uses are free, and kept until taken."""
        users, queue = self._users, self._queue
        for key in reversed(keys):
            users[key] -= 1
            if not users[key]:
                del users[key]
                queue[key] = self.blocks_per_page
                self.free += self.blocks_per_page
