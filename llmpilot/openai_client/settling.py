"""How many tokens each piece of an answer carried, decided at its end by all that was said of them.

What decided is named by `Counted.method`:

- `token_ids`: the ids that each piece carries.
- `usage`, `timings`: a count in the pieces that really runs, for those that carry output raise it.
- `chunks_confirmed`: one token a piece, and the server's total says so too.
- `total`: only the total is known, of the server or by its word that the length asked for was reached, so it
  is spread over the pieces.
- `visible`: one token a piece, for the total is more than the pieces can hold, and the silence before them
  was long enough for the rest: the model thought without showing it.
- `chunks`: the server gave no counts that hold, so each piece is taken for one token.
- `text`: so it did of an answer in one piece with far more text than one token has, which its length tells.
- `capped`: as `chunks`, but with more pieces than tokens asked for; the latter are spread over them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median_low
from typing import Any

from llmpilot.openai_client.counting import THOUGHT, Tokens, completion_of, number

RUNS_SHARE = 0.8
"""Of the pieces with output, which must raise a count for it to run."""
CLOSE, CLOSE_SHARE = 2, 0.05
"""How far counts may be from the server's total: some count the end of text, some do not."""
LEAST_TEXT = 2
"""Bytes of text a token has on average at least; where fewer come, tokens were not shown."""
USUAL_TEXT = 4
MOST_TEXT, MOST_TEXT_BESIDE = 32, 64
"""Bytes of text a token has on average at most: a total that leaves more for each is no total."""
FASTEST_NS = 20_000
"""Between two tokens of a sequence: nothing decodes faster."""
MOST_WITHOUT_TEXT = 8
"""Tokens in a piece without text, which ends of text and parts of characters are."""


@dataclass
class Counted:
    """What was decided: `counts` has the tokens of each of the answer's rows.

    `timed` is the sequence whose tokens are to have times, the first one that has any. `fewest` and `most`
    tokens had a sequence, `hidden` ones of each included, which were counted but are in no piece; `beside`:
    they are not among those that were asked for.
    """

    method: str = ""
    counts: list[int] = field(default_factory=list)
    timed: int = 0
    fewest: int = 0
    most: int = 0
    hidden: int = 0
    beside: bool = False


def settle(tokens: Tokens, times_ns: Sequence[int], asked: int, sent_ns: int) -> Counted:
    """Return how many tokens each row of `tokens` carried.

    Row i arrived at `times_ns[i]`, and `asked` tokens were asked for of each sequence, at `sent_ns` (0: not
    known).
    """
    if not tokens.rows:
        return Counted()
    said = _Said(tokens, times_ns, asked, sent_ns)
    counts = said.by_ids()
    method = "token_ids"
    if counts is None and (counts := said.by_running(said.running)) is not None:
        method = "usage"
    if counts is None and (counts := said.by_running(said.predicted)) is not None:
        method = "timings"
    if counts is None:
        method, counts = said.by_pieces()
    sequences = tokens.sequences
    hidden = said.hidden // sequences
    if sequences == 1:
        shown = [sum(counts)]
    else:
        shown = [0] * sequences
        for sequence, count in zip(said.sequence, counts, strict=True):
            shown[sequence] += count
    timed = next((i for i, count in enumerate(shown) if count), 0)
    return Counted(
        method if any(shown) else "",
        counts,
        timed,
        min(shown) + hidden,
        max(shown) + hidden,
        hidden,
        said.beside,
    )


class _Said:
    """An answer's rows as columns, and the server's totals: `total` tokens in its pieces, -1 if not known."""

    def __init__(self, tokens: Tokens, times_ns: Sequence[int], asked: int, sent_ns: int) -> None:
        columns = zip(*tokens.rows, strict=True)
        _, self.sequence, self.size, self.kind, self.ids, self.running, self.predicted, self.opens = columns
        self.sequences, self.asked = tokens.sequences, asked
        self.times_ns, self.sent_ns = times_ns, sent_ns
        self.final = tokens.final is not None
        self.outputs = [i for i, size in enumerate(self.size) if size]
        self.text = sum(self.size)
        self.hidden, self.beside = 0, False
        self.total = self._all_tokens(tokens)
        if self.total > 0 and (usage := tokens.final or tokens.usage) is not None:
            self._hide(usage)

    def _all_tokens(self, tokens: Tokens) -> int:
        """Return the server's own count of all output tokens; -1: none that says anything."""
        if tokens.final is not None:
            total = completion_of(tokens.final)
        elif tokens.usage is None:
            return self._length_reached() if tokens.finish == "length" else -1
        elif self.sequences == 1:
            total = completion_of(tokens.usage)
        else:
            last: dict[int, int] = {}
            for sequence, running in zip(self.sequence, self.running, strict=True):
                if running > 0:
                    last[sequence] = running
            total = sum(last.values()) if len(last) in (1, self.sequences) else -1
        too_few = total < len(self.outputs) and self.text > MOST_TEXT * total + MOST_TEXT_BESIDE
        return -1 if total <= 0 or too_few else total

    def _length_reached(self) -> int:
        """Return the tokens of an answer that ended for its length alone; -1: its text speaks against it.

        A server may have a limit of its own. Fewer pieces than tokens were asked for hold them all only where
        each has far more text than a token, and all have enough of it.
        """
        asked, pieces = self.asked * self.sequences, len(self.outputs)
        long_pieces = self.text > 2 * USUAL_TEXT * pieces
        return asked if 0 < pieces < asked and long_pieces and self.text >= USUAL_TEXT * asked else -1

    def _hide(self, usage: dict[str, Any]) -> None:
        """Take the thoughts that were counted and not shown out of the total."""
        thoughts, outside = _thoughts(usage, self.total, alone=self.sequences == 1)
        if thoughts <= 0:
            return
        shown = [size for size, kind in zip(self.size, self.kind, strict=True) if kind == THOUGHT]
        ids = sum(n for n, kind in zip(self.ids, self.kind, strict=True) if kind == THOUGHT and n > 0)
        # Of a summary there is far less text than of the thoughts themselves.
        whole = sum(shown) >= LEAST_TEXT * thoughts
        self.hidden = max(0, thoughts - ids) if ids else 0 if whole else max(0, thoughts - len(shown))
        self.beside = outside
        left = self.total + (thoughts if outside else 0) - self.hidden
        if left < 1 and self.outputs:
            # More is said to be hidden than there is beside what we see.
            left = min(len(self.outputs), self.total)
            self.hidden = self.total - left
        self.total = left

    def by_ids(self) -> list[int] | None:
        """Return the token ids in each row; None where they are not the answer's tokens."""
        if max(self.ids) <= 0:
            return None
        counts = [n if n > 0 else 0 for n in self.ids] if min(self.ids) < 0 else list(self.ids)
        with_ids = sum(1 for i in self.outputs if counts[i])
        if with_ids < RUNS_SHARE * len(self.outputs) or not self._agrees(sum(counts)):
            return None
        return self._first_shown(counts)

    def by_running(self, values: Sequence[int]) -> list[int] | None:
        """Return by how much each row raises a running count; None where it does not really run."""
        if max(values) <= 0:
            return None
        counts = self._increments(values, shared=False)
        if self.sequences > 1 and not self._runs(counts, values):
            counts = self._increments(values, shared=True)
        if not self._runs(counts, values):
            return None
        if self.sequences == 1:
            self._strip_hidden(counts)
        most = self.text + MOST_WITHOUT_TEXT * len(counts)
        if sum(counts) > most or not self._agrees(sum(counts)):
            return None
        return self._first_shown(counts)

    def _increments(self, values: Sequence[int], shared: bool) -> list[int]:
        so_far = [0] * self.sequences
        counts: list[int] = []
        for value, sequence, opens in zip(values, self.sequence, self.opens, strict=True):
            at = 0 if shared else sequence
            new = value - so_far[at]
            if new <= 0 or opens:  # what a piece that opens the answer counts is in the next one
                counts.append(0)
            else:
                counts.append(new)
                so_far[at] = value
        return counts

    def _runs(self, counts: list[int], values: Sequence[int]) -> bool:
        rows = self.outputs or [i for i, value in enumerate(values) if value >= 0 and not self.opens[i]]
        raised = sum(1 for i in rows if counts[i])
        # A count may be that of before the piece: then the first one says 0.
        lags = len(rows) > 2 and values[rows[0]] == 0
        if raised + lags < RUNS_SHARE * len(rows):
            return False
        return self.sequences == 1 or self.total < 0 or self._agrees(sum(counts))

    def _strip_hidden(self, counts: list[int]) -> None:
        """Take hidden thoughts, which come first, out of the counts, and see those that nobody stated."""
        surplus = sum(counts) - self.total if self.total > 0 else 0
        left = min(self.hidden, surplus)
        for i, count in enumerate(counts):
            if left <= 0:
                break
            taken = min(left, count - 1 if self.size[i] else count)
            if taken > 0:
                counts[i] -= taken
                left -= taken
        if self.hidden or len(self.outputs) < 3:
            return
        first, *others = (counts[i] for i in self.outputs)
        usual = median_low(others)
        # Far more than any piece has, and more than its text can hold: they were before it.
        if first > CLOSE + 4 * max(others) and self.size[self.outputs[0]] < LEAST_TEXT * first:
            self.hidden = first - max(1, usual)
            counts[self.outputs[0]] -= self.hidden
            if self.total > 0:
                self.total -= self.hidden

    def _agrees(self, count: int) -> bool:
        return self.total < 0 or abs(count - self.total) <= max(CLOSE, CLOSE_SHARE * self.total)

    def _first_shown(self, counts: list[int]) -> list[int] | None:
        """Return the counts with a token in the first piece that has output; None where that cannot be."""
        outputs = self.outputs
        if self.sequences > 1 or not outputs or counts[outputs[0]]:
            return counts
        before = [i for i in range(outputs[0]) if counts[i]]
        if before:  # what opened the answer counted the token that is shown now
            counts[before[-1]] -= 1
            counts[outputs[0]] = 1
            return counts
        later = [counts[i] for i in outputs[1:]]
        shown = sum(counts)
        missing = self.total - shown if self.final else min(1, self.asked - shown)
        if not 0 < missing <= CLOSE + max(later, default=0):
            return None
        # Each piece states the count before it.
        for i, count in zip(outputs, [*later, missing], strict=True):
            counts[i] = count
        return counts

    def by_pieces(self) -> tuple[str, list[int]]:
        """Return the tokens of each row by the total, if there is one, and what that is called."""
        counts = [0] * len(self.size)
        outputs, total = self.outputs, self.total
        if total > len(outputs) and (rows := self._rows_of_one(total)):
            outputs = rows
        elif total >= LEAST_TEXT and self._too_many(total):
            shown = len(outputs) if len(outputs) > 1 else max(1, self.text // USUAL_TEXT)
            if self._thought_before(total - shown):
                self.hidden += total - shown
                _put(counts, outputs, spread(shown, len(outputs)))
                return "visible", counts
            if total > self.text:
                total = -1
        pieces = len(outputs)
        if total == pieces or not pieces:
            _put(counts, outputs, [1] * pieces)
            return "chunks_confirmed" if pieces else "", counts
        if total < 0 and pieces == 1 and self.text > MOST_TEXT and self.asked > 1:
            counts[outputs[0]] = min(self.asked, self.text // USUAL_TEXT)
            return "text", counts
        method = "chunks"
        asked, wanted = self.asked, self.asked * self.sequences
        for sequence in range(self.sequences):
            own = outputs if self.sequences == 1 else [i for i in outputs if self.sequence[i] == sequence]
            if total > 0:
                method = "total"
                share = asked if total == wanted else max(bool(own), round(total * len(own) / pieces))
            elif len(own) > asked:
                method, share = "capped", asked
            else:
                share = len(own)
            _put(counts, own, spread(share, len(own)))
        return method, counts

    def _rows_of_one(self, total: int) -> list[int]:
        """Return the rows from the first output on if they are as many as tokens: not each has a text."""
        if not self.outputs:
            return []
        rows = [i for i in range(self.outputs[0], len(self.opens)) if not self.opens[i]]
        if len(rows) == total + 1 and not self.size[rows[-1]]:
            rows.pop()  # it says how the answer ended
        return rows if len(rows) == total else []

    def _too_many(self, total: int) -> bool:
        """Whether a total is more than the pieces hold, by their text."""
        pieces = len(self.outputs)
        much = 2 * total >= 3 * pieces > 3 and self.text < LEAST_TEXT * total
        return pieces > 0 and (much or total > self.text)

    def _thought_before(self, hidden: int) -> bool:
        """Whether so many tokens had time to be decoded before the first piece with output."""
        times = [self.times_ns[i] for i in self.outputs]
        if not self.sent_ns:
            return False
        pace_ns = 0
        if len(times) > 1 and self.total <= self.text:
            pace_ns = median_low([b - a for a, b in pairwise(times)])
        # Of more tokens than bytes some were hidden for certain, and it need only be possible at all.
        return 2 * (times[0] - self.sent_ns) >= hidden * max(pace_ns, FASTEST_NS)


def spread(tokens: int, pieces: int) -> list[int]:
    """Return how many tokens each piece has if they come evenly; the first piece has one of them."""
    if not pieces or not tokens:
        return [0] * pieces
    if tokens == 1 or tokens < pieces:
        counts = [0] * pieces
        for k in range(tokens):
            counts[k * (pieces - 1) // max(1, tokens - 1)] += 1
        return counts
    each, extra = divmod(tokens, pieces)
    return [each + ((i + 1) * extra // pieces - i * extra // pieces) for i in range(pieces)]


def _put(counts: list[int], rows: list[int], values: list[int]) -> None:
    for row, value in zip(rows, values, strict=True):
        counts[row] = value


def _thoughts(usage: dict[str, Any], total: int, *, alone: bool) -> tuple[int, bool]:
    """Return how many of the tokens were thoughts by this usage, and whether they are not in the total.

    OpenAI counts them among the completion's tokens, xAI beside them, and Gemini says by the sum of all only
    that there were some. -1: it does not say.
    """
    thoughts = -1
    for details in (usage.get("completion_tokens_details"), usage.get("output_tokens_details"), usage):
        if thoughts < 0 and type(details) is dict:
            thoughts = number(details.get("reasoning_tokens"))
    everything, prompt = number(usage.get("total_tokens")), number(usage.get("prompt_tokens"))
    beside = everything - prompt - total if alone and everything >= 0 and prompt >= 0 else 0
    if thoughts < 0:
        return (beside, True) if beside > 0 else (-1, False)
    return thoughts, thoughts > total or (thoughts > 0 and beside == thoughts)
