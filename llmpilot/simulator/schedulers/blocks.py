"""The blocks of a paged KV cache: how many are free, and which of them still hold what is wanted again."""

from collections import deque
from dataclasses import dataclass

from llmpilot.simulator.prefix_cache import Keys, PrefixCache
from llmpilot.simulator.scheduling import Sequence


@dataclass(slots=True)
class _Freed:
    """Blocks that were freed together, and whose they were if that one may ask for them again."""

    whose: Sequence | None
    count: int


class Blocks:
    """`free` of `total` blocks. Freed blocks are taken again in the order in which they were freed, and until
    then keep what they held: a preempted sequence that comes back in time finds its first blocks again."""

    def __init__(self, total: int) -> None:
        self.total = self.free = total
        self._freed: deque[_Freed] = deque()  # the free blocks by age, as long as any of them is kept
        self._kept: dict[Sequence, _Freed] = {}

    def take(self, count: int) -> None:
        """Take free blocks, those first that were freed first."""
        self.free -= count
        freed, kept = self._freed, self._kept
        while count and kept:
            oldest = freed[0]
            if oldest.count > count:
                oldest.count -= count
                return
            count -= oldest.count
            freed.popleft()
            if oldest.whose is not None:
                del kept[oldest.whose]

    def give(self, count: int) -> None:
        """Free blocks that nobody will ask for again."""
        self.free += count
        if self._kept:
            self._freed.append(_Freed(None, count))

    def give_kept(self, sequence: Sequence, count: int) -> None:
        """Free the blocks of a sequence that will want them again; of these its last ones are taken first."""
        if not self._kept:
            self._freed = deque([_Freed(None, self.free)])
        freed = _Freed(sequence, count)
        self._freed.append(freed)
        self._kept[sequence] = freed
        self.free += count

    def kept(self, sequence: Sequence) -> int:
        """Return how many of the sequence's freed blocks nobody has taken meanwhile."""
        freed = self._kept.get(sequence)
        return freed.count if freed else 0

    def take_kept(self, sequence: Sequence, count: int) -> None:
        """Give `count` of its own blocks back to the sequence; the others become as any."""
        freed = self._kept.pop(sequence, None)
        if freed is not None:
            freed.whose = None
            freed.count -= count
            self.free -= count


class PrefixBlocks(PrefixCache):
    """Blocks in whose content sequences find the beginnings of their prompts (`Sequence.content`).

    Of a sequence whose content is known, the first pages are in use by it under their keys; the rest of what
    it holds is a number of blocks, as is all of a sequence whose content is not.
    """

    def __init__(self, total: int, block_size: int, blocks_per_page: int) -> None:
        super().__init__(total, blocks_per_page)
        self.page_tokens = block_size * blocks_per_page
        self._keys: dict[Sequence, Keys] = {}
        self._used: dict[Sequence, int] = {}  # pages

    def know(self, sequence: Sequence) -> None:
        """Take note of what a sequence that is new holds."""
        if sequence.content is not None and sequence.copies == 1:
            self._keys[sequence] = sequence.content.page_keys(self.page_tokens)
            self._used[sequence] = 0

    def knows(self, sequence: Sequence) -> bool:
        """Whether the content of a sequence that waits or runs is known."""
        return sequence in self._keys

    def kept(self, sequence: Sequence) -> int:
        """Return how many blocks of a waiting sequence's prompt are found: never its last token's."""
        return self.found(self._first(sequence)) * self.blocks_per_page

    def needs_not(self, sequence: Sequence) -> int:
        """Return how many blocks a waiting sequence needs not, as it finds them in use by others."""
        return self.in_use(self._first(sequence)) * self.blocks_per_page

    def take_kept(self, sequence: Sequence, count: int) -> None:
        """Let the sequence use the first `count` blocks that it found."""
        if count:
            pages = self._used[sequence] = count // self.blocks_per_page
            self.use(self._keys[sequence][:pages])

    def computed(self, sequence: Sequence, tokens: int) -> None:
        """Let others find the whole pages of a sequence's first `tokens` tokens."""
        keys = self._keys.get(sequence)
        if keys is not None and (pages := tokens // self.page_tokens) > self._used[sequence]:
            self.fill(keys[self._used[sequence] : pages])
            self._used[sequence] = min(pages, len(keys))

    def release(self, sequence: Sequence, held: int, tokens: int) -> None:
        """Free the `held` blocks of a sequence; pages of its first `tokens` tokens are kept for others."""
        self.computed(sequence, tokens)
        used = self._used[sequence]
        self.give(held - used * self.blocks_per_page)
        self.leave(self._keys[sequence][:used])
        self._used[sequence] = 0

    def own(self, sequence: Sequence, held: int) -> int:
        """Return how many of a sequence's `held` blocks it alone uses."""
        return held - self.shared(self._keys[sequence][: self._used[sequence]]) * self.blocks_per_page

    def forget(self, sequence: Sequence) -> None:
        """Forget a sequence that will not come back."""
        del self._keys[sequence], self._used[sequence]

    def _first(self, sequence: Sequence) -> Keys:
        return self._keys.get(sequence, ())[: (sequence.target - 1) // self.page_tokens]
