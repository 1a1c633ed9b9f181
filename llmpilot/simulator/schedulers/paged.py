"""What the schedulers of today's engines have in common: a queue, places, and blocks of a paged KV cache."""

from collections import deque

from pydantic import PositiveInt

from llmpilot.schema import Facts, Share
from llmpilot.simulator.batch import Batch
from llmpilot.simulator.schedulers.blocks import Blocks, PrefixBlocks
from llmpilot.simulator.schedulers.decoding import Decoding
from llmpilot.simulator.scheduling import Ended, Gauges, Sequence, Step

NO_LIMIT = 1 << 60
LEAST_PAGE_TOKENS = 16
"""Prefixes are found in pages of a block, but of so many tokens at least: an engine whose blocks are single
tokens (SGLang) finds up to 15 more."""


class PagedRule(Facts):
    """Settings that decide who is in a step, under vLLM's names whatever the engine calls them.

    `prefix_hit_share` of every prompt is in the cache already: it is not computed, but needs blocks. Where
    none is, and with `prefix_caching`, prompts whose content is known are found as far as others left them
    in the cache.
    `overlapped`: a step is composed while the one before it runs, so who arrived, or whose place became free,
    during that one waits for the step after it.
    """

    max_num_seqs: PositiveInt
    max_num_batched_tokens: PositiveInt
    block_size: PositiveInt
    chunked_prefill: bool
    prefix_hit_share: Share = 0.0
    prefix_caching: bool = True
    overlapped: bool = True
    max_positions: PositiveInt | None = None

    def longest_request_tokens(self, kv_capacity_tokens: int, copies: int) -> int:
        """Return how long each of a request's `copies` sequences may become; 0 for more than fit."""
        if copies > self.max_num_seqs:
            return 0
        blocks = kv_capacity_tokens // self.block_size // copies
        return min(blocks * self.block_size, self.max_positions or NO_LIMIT)


class PagedScheduler:
    """A scheduler whose `compose` its engine's rule writes; see scheduling.Scheduler."""

    grows = True
    """Whether a sequence that decodes takes blocks as its tokens come, or has them all from the beginning."""
    finds_at_once = False
    """Whether others find a prompt in the step that computes it, or only when that is over."""

    def __init__(self, rule: PagedRule, kv_capacity_tokens: int) -> None:
        self.capacity, self.block_size = kv_capacity_tokens, rule.block_size
        self.blocks: Blocks | PrefixBlocks = Blocks(kv_capacity_tokens // rule.block_size)
        self.prefixes: PrefixBlocks | None = None  # the same, once somebody's content is known
        self.waiting: deque[Sequence] = deque()
        self.running: dict[Sequence, None] = {}  # in the order of admission
        self.decoding = Decoding(rule.block_size)
        self.places = 0  # copies that hold one
        self.partial: Sequence | None = None  # the one whose prompt will be in the cache in part
        self.prefills: dict[Sequence, int] = {}  # the step's prompts, and how many tokens of each
        self._paged = rule
        self._decodes = self._busy = False  # the step in flight decodes; a step is in flight
        # With `overlapped`, what the next step was composed without knowing.
        self._door: list[Sequence] = []
        self._late_blocks = self._late_places = 0
        self._late_known: list[tuple[Sequence, int]] = []  # and what they hold

    def compose(self) -> Step | None:
        """Return the next step, out of `batch`, or None."""
        raise NotImplementedError

    @property
    def step(self) -> int:
        """How many steps had sequences that decoded."""
        return self.decoding.step

    def enqueue(self, sequence: Sequence) -> bool:
        """Queue a request; return False, and forget it, if it could never be served."""
        tokens = sequence.input_tokens + sequence.output_tokens
        if tokens > self._paged.longest_request_tokens(self.capacity, sequence.copies):
            return False
        if self._paged.prefix_hit_share:
            hits = round(self._paged.prefix_hit_share * sequence.input_tokens)
            sequence.cached = min(hits, sequence.input_tokens - 1)
        elif sequence.content is not None and self._paged.prefix_caching:
            self._know(sequence)
        if self._busy and self._paged.overlapped:
            self._door.append(sequence)
        else:
            self.waiting.append(sequence)
        return True

    def next_step(self) -> Step | None:
        """Return what the engine computes next, or None when it has nothing to do."""
        late = bool(self._door or self._late_places)
        step = self.compose()
        if late:
            self.learn()
            if step is None:  # nothing was in flight, so nothing was late
                step = self.compose()
            elif self.waiting and step.steps > 1:
                step = step._replace(steps=1)
        self._busy = step is not None
        return step

    def learn(self) -> None:
        """Take note of what came too late for the step that is being composed."""
        self.waiting.extend(self._door)
        self._door.clear()
        blocks, places = self._late_blocks, self._late_places
        self._late_blocks = self._late_places = 0
        if self.prefixes is not None:
            for sequence, held in self._late_known:
                self._end_known(self.prefixes, sequence, held)
            self._late_known.clear()
        if places:
            self.give(blocks, places)

    def finish(self, steps: int) -> Ended:
        """Count the first `steps` steps of the last `next_step` as done."""
        decoding, running = self.decoding, self.running
        started: list[Sequence] = []
        done: list[Sequence] = []
        if self._decodes:
            if self.grows:
                self.blocks.take(decoding.new_blocks(steps))
            done = decoding.advance(steps)
            for sequence in done:
                del running[sequence]
                self._release(sequence, decoding.blocks_of(sequence) if self.grows else sequence.blocks)
        for sequence, chunk in self.prefills.items():
            sequence.computed += chunk
            if self.prefixes is not None and not self.finds_at_once:
                self.prefixes.computed(sequence, sequence.computed)
            if sequence.computed < sequence.copies * sequence.target:
                continue
            sequence.generated += 1
            started.append(sequence)
            if sequence.generated < sequence.output_tokens:
                decoding.join(sequence)
            else:
                sequence.first_step = sequence.last_step = decoding.step
                del running[sequence]
                self._release(sequence, sequence.blocks)
                done.append(sequence)
        self.prefills.clear()
        return Ended(started, done, [])

    def leave(self, sequence: Sequence) -> None:
        """Forget a request, wherever it is: its place is free from the next step on."""
        if sequence in self.running:
            self._free(sequence, self._take_out(sequence), 0)
        else:
            self.blocks.take_kept(sequence, 0)
            (self._door if sequence in self._door else self.waiting).remove(sequence)
        if self.prefixes is not None and self.prefixes.knows(sequence):
            self.prefixes.forget(sequence)

    def gauges(self) -> Gauges:
        """Return how much runs and waits."""
        waiting = sum(sequence.copies for sequence in (*self.waiting, *self._door))
        held = self.blocks.total - self.blocks.free - self._late_blocks
        if self.prefixes is not None:
            held -= sum(self.prefixes.own(*known) for known in self._late_known)
        return Gauges(self.places - self._late_places, waiting, held * self.block_size)

    def batch_of(
        self, tokens: int, pairs: float, preempted: list[Sequence], *, decodes: bool, once: bool = False
    ) -> Step | None:
        """Return the step of the prompts in `prefills`, and with `decodes` of all that decode.

        `once`: the step after it may let somebody in.
        """
        decoding = self.decoding
        self._decodes = decodes = decodes and decoding.sequences > 0
        if tokens:
            prefills = sum(sequence.copies for sequence in self.prefills)
            running, longest = (0, 0), 0
            if decodes:
                running, longest = (decoding.sequences, decoding.context), decoding.longest()
            starts = len(self.prefills) - (self.partial is not None and self.partial in self.prefills)
            return Step(Batch(*running, tokens, pairs, prefills, longest), 1, True, starts, tuple(preempted))
        if not decodes:
            return None
        steps = 1 if once else decoding.steps_to_end()
        if self.grows:
            steps = decoding.steps_within(self.blocks.free, steps)
        # Behind a head that does not fit nobody is let in.
        waits_for_arrivals = not self.waiting
        batch = Batch(decoding.sequences, decoding.context, longest_context_tokens=decoding.longest())
        return Step(batch, steps, waits_for_arrivals, 0, tuple(preempted))

    def admit(self, sequence: Sequence, chunk: int, blocks: int, *, cached: int = 0, kept: int = 0) -> float:
        """Let in who waits first, with `chunk` tokens of its prompt behind `cached` ones, and so many blocks.

        `kept` of them are its own of before. Returns the pairs of tokens that the chunk attends to.
        """
        self.waiting.popleft()
        self.running[sequence] = None
        self.places += sequence.copies
        self.blocks.take_kept(sequence, kept)
        sequence.blocks, sequence.computed = kept, cached
        if sequence.hits < 0:
            sequence.hits = cached
        return self.prefill(sequence, chunk, blocks - kept)

    def prefill(self, sequence: Sequence, chunk: int, new_blocks: int) -> float:
        """Put a chunk of a prompt into the step; return its pairs of tokens."""
        self.blocks.take(new_blocks)
        sequence.blocks += new_blocks
        self.prefills[sequence] = chunk
        copies, computed = sequence.copies, sequence.computed
        if self.prefixes is not None and self.finds_at_once:
            self.prefixes.computed(sequence, computed + chunk)
        self.partial = sequence if computed + chunk < copies * sequence.target else None
        return chunk * (2 * computed + chunk + copies) / (2 * copies)

    def preempt(self, victim: Sequence, *, keep: bool) -> None:
        """Take a sequence's place and blocks, which `keep`s it may find again; it is to be computed anew."""
        copies = victim.copies
        decoded = victim.finish_step >= 0
        held = self._take_out(victim)
        if decoded:
            if victim.earlier is None:
                victim.earlier = []
            victim.earlier.append((victim.started_ms, victim.first_step, victim.last_step))
            victim.first_step = -1
            victim.computed = copies * (victim.input_tokens + victim.generated - 1)
        full = copies * (victim.computed // copies // self.block_size)
        if self.prefixes is None and keep and full:
            assert isinstance(self.blocks, Blocks)
            self.give(held - full, copies)
            self.blocks.give_kept(victim, full)
        else:
            self._free(victim, held, victim.computed if keep else 0)
        victim.target = victim.input_tokens + victim.generated

    def find(self, sequence: Sequence) -> int:
        """Return how many blocks of a waiting sequence are in the cache; `cached` are their tokens."""
        if self.prefixes is None or not self.prefixes.knows(sequence):
            return 0
        kept = self.prefixes.kept(sequence)
        sequence.cached = kept * self.block_size
        return kept

    def missing(self, sequence: Sequence, blocks: int) -> int:
        """Return how many of the blocks that a waiting sequence needs must be free: not those in use."""
        return blocks if self.prefixes is None else blocks - self.prefixes.needs_not(sequence)

    def blocks_for(self, sequence: Sequence, tokens: int) -> int:
        """Return how many blocks `tokens` tokens need, those of all copies together."""
        copies = sequence.copies
        return -copies * ((-tokens // copies) // self.block_size)

    def _take_out(self, sequence: Sequence) -> int:
        """Take a sequence out of what runs; return the blocks that it held."""
        del self.running[sequence]
        held = sequence.blocks
        if sequence.finish_step >= 0:
            decoded = self.decoding.remove(sequence)
            return decoded if self.grows else held
        self.prefills.pop(sequence, None)
        if sequence is self.partial:
            self.partial = None
        return held

    def _know(self, sequence: Sequence) -> None:
        if self.prefixes is None:
            taken = self.blocks.total - self.blocks.free
            pages = max(1, LEAST_PAGE_TOKENS // self.block_size)
            self.blocks = self.prefixes = PrefixBlocks(self.blocks.total, self.block_size, pages)
            self.prefixes.take(taken)
        self.prefixes.know(sequence)

    def _free(self, sequence: Sequence, held: int, tokens: int) -> None:
        """Free a sequence's place and blocks, of which those of its first `tokens` tokens can be found."""
        if self.prefixes is not None and self.prefixes.knows(sequence):
            self.prefixes.release(sequence, held, tokens)
            held = 0
        self.give(held, sequence.copies)

    def _end_known(self, prefixes: PrefixBlocks, sequence: Sequence, held: int) -> None:
        # The last token was not put back into the model: it is not in the cache.
        prefixes.release(sequence, held, sequence.input_tokens + sequence.output_tokens - 1)
        prefixes.forget(sequence)

    def _release(self, sequence: Sequence, blocks: int) -> None:
        if self.prefixes is not None and self.prefixes.knows(sequence):
            if self._paged.overlapped:
                self._late_known.append((sequence, blocks))
            else:
                self._end_known(self.prefixes, sequence, blocks)
            blocks = 0
        if self._paged.overlapped:
            self._late_blocks += blocks
            self._late_places += sequence.copies
        else:
            self.give(blocks, sequence.copies)

    def give(self, blocks: int, places: int) -> None:
        """Free blocks and places."""
        self.blocks.give(blocks)
        self.places -= places
