"""The simulator's batcher, with clients that may go away at any moment, as real ones do."""

from heapq import heapify

from llmpilot.simulator.batching import Batcher, Sequence


class LeavingBatcher(Batcher):
    """A batcher whose sequences can leave before they are done; their place is free from the next step on."""

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

    def weight_with(self, sequences: list[Sequence]) -> int:
        """Return the batch weight once these sequences have joined."""
        if not self.rule.padded:
            return self.weight + sum(sequence.weight for sequence in sequences)
        members = [*(entry[2] for entry in self.running), *sequences]
        longest = max(s.input_tokens for s in members) + max(s.output_tokens for s in members)
        return longest * sum(s.copies for s in members)
