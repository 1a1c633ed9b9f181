"""One request on its way: what was sent, and what has come of its answer. Knows nothing of sockets."""

import sys
from array import array
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmpilot.openai_client.http import Connection

ROOM, ROOM_PER_TOKEN, ROOM_PER_BYTE_ASKED = 1 << 20, 1 << 14, 4
"""How long an answer may be [bytes]: many times what servers write, which may repeat the prompt's ids."""


class Flight:
    """One request on its way: what was sent, and every piece of its answer with its time."""

    __slots__ = (
        "_room",
        "_weighed",
        "awaited",
        "begun_ns",
        "connection",
        "head_pieces",
        "on_end",
        "output_tokens",
        "owner",
        "pieces",
        "prompt_tokens",
        "row",
        "sent_ns",
        "sequences",
        "status",
        "times",
        "wire",
    )

    def __init__(
        self, row: int, wire: bytes, output_tokens: int, sequences: int, room: int | None = None
    ) -> None:
        self.row, self.wire = row, wire
        self.output_tokens, self.sequences = output_tokens, sequences
        self.prompt_tokens = -1  # where it is known, and not by its row
        self.begun_ns = 0  # from when latency counts: sent, or in an open loop scheduled
        self.sent_ns = 0
        self.pieces: list[bytes] = []
        self.times = array("q")
        if room is None:
            room = ROOM + sequences * (ROOM_PER_TOKEN * output_tokens + ROOM_PER_BYTE_ASKED * len(wire))
        self._room = room  # how long its answer may be [bytes]
        self._weighed = 0
        self.awaited = False
        self.status = b""
        self.head_pieces = sys.maxsize  # how many came before the body; not known yet
        self.connection: Connection | None = None
        self.owner: object = None
        self.on_end: Callable[[Flight, str], None] = _ignore

    @property
    def streaming(self) -> bool:
        """Whether something behind the head has come."""
        return len(self.pieces) > self.head_pieces

    def endless(self) -> bool:
        """Whether more has come than any such answer has, and cut it there; to be asked again and again.

        Not as pieces come: that would make the next one's time later.
        """
        fresh = self.pieces[self._weighed :]
        self._weighed += len(fresh)
        self._room -= sum(map(len, fresh))
        if self._room >= 0:
            return False
        while self._room < 0:
            self._room += len(self.pieces.pop())
            self.times.pop()
        return True


def _ignore(_flight: Flight, _kind: str) -> None:
    pass
