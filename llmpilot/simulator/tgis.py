"""IBM's TGIS as a clock sees it: the batcher behind the seam that all engines have in common."""

from heapq import heapify

from llmpilot.simulator.batching import Batcher, Decode, Prefill
from llmpilot.simulator.scheduling import Action, Ended, Gauges, Sequence


class TgisCore(Batcher):
    """A batcher whose sequences can leave before they are done; their place is free from the next step on."""

    _in_flight: Prefill | None = None
    _left: tuple[Sequence, ...] = ()  # while they were being prefilled

    def begin(self, now_ms: float) -> Action | None:
        """Return what the engine does from `now_ms` on, or None when it has nothing to do."""
        action = self.next_action(now_ms)
        if isinstance(action, Decode):
            return Action(
                steps=action.steps,
                first_ms=action.first_ms,
                increment_ms=action.increment_ms,
                decodes=True,
                waits_for_arrivals=True,
                out_of_memory=action.out_of_memory,
            )
        self._in_flight = action
        if action is None:
            return None
        return Action(
            steps=1,
            first_ms=action.duration_ms,
            increment_ms=0.0,
            decodes=False,
            waits_for_arrivals=False,
            starts=len(action.sequences),
            out_of_memory=action.out_of_memory,
        )

    def finish(self, action: Action, steps: int) -> Ended:
        """Count the first `steps` steps of an action as done."""
        if self._in_flight is None:
            done = self.finish_decode(steps) if steps else []
            lost = self.lose_batch() if action.out_of_memory and steps == action.steps else []
            return Ended([], done, lost)
        prefill, left = self._in_flight, self._left
        self._in_flight, self._left = None, ()
        staying = [sequence for sequence in prefill.sequences if sequence not in left]
        if action.out_of_memory:
            self.drop_prefill()
            return Ended([], [], staying)
        done = self.finish_prefill(prefill)
        for sequence in left:
            if sequence in done:
                done.remove(sequence)
            else:
                self.leave_batch(sequence)
        return Ended(staying, done, [])

    def leave(self, sequence: Sequence) -> None:
        """Forget a request, wherever it is."""
        if self._in_flight is not None and sequence in self._in_flight.sequences:
            self._left += (sequence,)
        elif sequence.first_step >= 0:
            self.leave_batch(sequence)
        else:
            self.leave_queue(sequence)

    def leave_queue(self, sequence: Sequence) -> None:
        """Take a waiting sequence out of the queue."""
        self.waiting.remove(sequence)
        self.batch_changed()

    def leave_batch(self, sequence: Sequence) -> None:
        """Take a running sequence out of the batch, with the KV cache that it holds by now."""
        self.running = [entry for entry in self.running if entry[2] is not sequence]
        if not self.running:
            self.lose_batch()
            return
        heapify(self.running)
        self.sequences -= sequence.copies
        self.weight -= sequence.weight
        held = sequence.input_tokens + 1 + self.step - sequence.first_step
        self.kv_tokens -= sequence.copies * held
        self.batch_changed()

    def gauges(self) -> Gauges:
        """Return how much runs and waits."""
        prefilling = self._in_flight.sequences if self._in_flight else []
        return Gauges(
            self.sequences + sum(s.copies for s in prefilling),
            sum(s.copies for s in self.waiting),
            self.kv_tokens + sum(s.copies * s.input_tokens for s in prefilling),
        )

    def heaviest_next(self) -> int:
        """Return the batch weight once those that are being prefilled have joined; 0 if there are none."""
        return self.weight_with(self._in_flight.sequences) if self._in_flight else 0

    def weight_with(self, sequences: list[Sequence]) -> int:
        """Return the batch weight once these sequences have joined."""
        if not self.rule.padded:
            return self.weight + sum(sequence.weight for sequence in sequences)
        members = [*(entry[2] for entry in self.running), *sequences]
        longest = max(s.input_tokens for s in members) + max(s.output_tokens for s in members)
        return longest * sum(s.copies for s in members)
