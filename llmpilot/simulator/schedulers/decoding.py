"""The sequences that decode together, counted and not visited: many steps cost what one does."""

from heapq import heapify, heappop, heappush

from llmpilot.simulator.scheduling import Sequence


class Decoding:
    """Sequences of which each gets a token in every decode step. `step` counts these steps.

    `sequences` counts copies; `context` sums the positions that the next step attends to. A sequence needs a
    new block of the KV cache in each `block_size`-th step: `_new` counts, by step modulo `block_size`, how
    many sequences do.
    """

    def __init__(self, block_size: int) -> None:
        self.step = self.sequences = self.context = 0
        self._block_size = block_size
        self._new = [0] * block_size
        # Heaps; who left early is still in them.
        self._ends: list[tuple[int, int, Sequence]] = []
        self._lengths: list[tuple[int, int, Sequence]] = []

    def join(self, sequence: Sequence) -> None:
        """Let a sequence in that has just got its token number `generated`, and owes more."""
        length = sequence.input_tokens + sequence.generated
        sequence.first_step = self.step
        sequence.finish_step = self.step + sequence.output_tokens - sequence.generated
        heappush(self._ends, (sequence.finish_step, sequence.index, sequence))
        heappush(self._lengths, (self.step - length, sequence.index, sequence))
        self.sequences += sequence.copies
        self.context += sequence.copies * length
        self._new[(self.step + 1 - length) % self._block_size] += sequence.copies

    def remove(self, sequence: Sequence) -> int:
        """Take a sequence out before its end; return how many blocks it held.

        `generated` counts then all of its tokens.
        """
        blocks = self.blocks_of(sequence)
        self._count_out(sequence)
        sequence.finish_step = -1
        sequence.generated += self.step - sequence.first_step
        if len(self._ends) > 64 + 4 * self.sequences:
            self._ends = [entry for entry in self._ends if entry[2].finish_step == entry[0]]
            heapify(self._ends)
        return blocks

    def advance(self, steps: int) -> list[Sequence]:
        """Decode `steps` times; return the sequences that ended with the last step."""
        self.step += steps
        self.context += steps * self.sequences
        done: list[Sequence] = []
        ends, step = self._ends, self.step
        while ends and ends[0][0] <= step:
            finish_step, _, sequence = heappop(ends)
            # An entry of before a preemption may say the same step: it ends once.
            if sequence.finish_step == finish_step and sequence.last_step != step:
                self._count_out(sequence)
                done.append(sequence)
        return done

    def steps_to_end(self) -> int:
        """Return after how many steps the next sequence ends; some sequence must be decoding."""
        ends = self._ends
        while ends[0][2].finish_step != ends[0][0]:
            heappop(ends)
        return ends[0][0] - self.step

    def new_blocks(self, steps: int) -> int:
        """Return how many new blocks the next `steps` steps need."""
        rounds, rest = divmod(steps, self._block_size)
        needed = rounds * self.sequences
        for step in range(self.step, self.step + rest):
            needed += self._new[step % self._block_size]
        return needed

    def needs_block(self, sequence: Sequence) -> bool:
        """Whether a decoding sequence needs a new block in the next step."""
        return self.length(sequence) % self._block_size == 1 % self._block_size

    def steps_within(self, free: int, most: int) -> int:
        """Return how many steps, at most `most`, `free` blocks are enough for."""
        if self.sequences * (most // self._block_size + 1) <= free:
            return most
        rounds = min(free // self.sequences, most // self._block_size)
        steps, free = rounds * self._block_size, free - rounds * self.sequences
        while steps < most:
            free -= self._new[(self.step + steps) % self._block_size]
            if free < 0:
                return steps
            steps += 1
        return most

    def length(self, sequence: Sequence) -> int:
        """Return how many positions the next step of a decoding sequence attends to."""
        return sequence.input_tokens + sequence.generated + self.step - sequence.first_step

    def longest(self) -> int:
        """Return the largest of the lengths; some sequence must be decoding."""
        lengths, step = self._lengths, self.step
        while True:
            before, _, sequence = lengths[0]
            # Longer ones on top; an entry of before a preemption says another length.
            if sequence.finish_step > step and step - before == self.length(sequence):
                return step - before
            heappop(lengths)

    def blocks_of(self, sequence: Sequence) -> int:
        """Return how many blocks a sequence holds that decodes, or has just ended."""
        return -sequence.copies * ((1 - self.length(sequence)) // self._block_size)

    def _count_out(self, sequence: Sequence) -> None:
        length = self.length(sequence)
        self.sequences -= sequence.copies
        self.context -= sequence.copies * length
        self._new[(self.step + 1 - length) % self._block_size] -= sequence.copies
        sequence.last_step = self.step
