"""The blocks of a paged KV cache: how many are free, and which of them still hold what was preempted."""

from collections import deque
from dataclasses import dataclass

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
