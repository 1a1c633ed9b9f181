"""What the turns of a conversation are sent with: all that was said before, the answers as they really were.

As token ids, where the server takes them, each turn begins with exactly the ids of the one before: those of
its prompt, of the answer as the server told them, and of the new message. As text or chat messages it begins
with what was said, the answer's own text among it.
"""

import json
from abc import ABC, abstractmethod

from llmpilot.deploy.endpoint import HttpEndpoint
from llmpilot.engine.words import TextPrompts
from llmpilot.loadtest.client_prompts import TokenIdPrompts
from llmpilot.openai_client.said import Said

NUMBERS = 44
"""Bits of a message's number within its level."""
CONVERSATIONS, TURNS = 24, 19
"""Bits of a conversation's number and of a turn's; behind those of the turn, one for made-up answers."""


class Histories(ABC):
    """Writes what a level's conversations say, as JSON without its ends; parts are joined to a prompt.

    Numbers make a level's texts new to the server: `nonce` is the level's own, so that nothing which an
    earlier one left in a cache is found. Its system prompt is one, whichever process sends it.
    """

    def __init__(self, nonce: int) -> None:
        self._nonce = nonce

    def _number(self, conversation: int, turn: int, made_up: bool = False) -> int:
        # The conversation's digits are the lowest: they come first in a text, so that texts differ at once.
        own = (made_up << (TURNS + CONVERSATIONS)) + (turn << CONVERSATIONS) + conversation
        return (self._nonce << NUMBERS) + own

    @property
    def _system_number(self) -> int:
        return (self._nonce << NUMBERS) + (1 << NUMBERS) - 1

    @abstractmethod
    def system(self, tokens: int) -> bytes:
        """Return the system prompt of this length."""

    @abstractmethod
    def message(self, conversation: int, turn: int, tokens: int) -> bytes:
        """Return the user's message of a turn."""

    @abstractmethod
    def answer(self, said: Said, conversation: int, turn: int, tokens: int) -> tuple[bytes, int]:
        """Return the answer to a turn, and how many tokens long it is as far as that is known: -1 is not at
        all. `tokens` were asked for."""

    @abstractmethod
    def prompt(self, parts: list[bytes]) -> bytes:
        """Return the JSON of a prompt, or of all messages, made of these parts."""


class IdHistories(Histories):
    """Token ids. Where the server does not tell those of an answer, others of the same number stand in.

    `made_up` counts these answers: of them, no cache finds anything again.
    """

    def __init__(self, nonce: int, seed: int, vocabulary_size: int | None) -> None:
        super().__init__(nonce)
        self._prompts = TokenIdPrompts(seed, vocabulary_size)
        self.made_up = 0

    def system(self, tokens: int) -> bytes:
        """Return the system prompt of this length."""
        return self._prompts.prompt(self._system_number, tokens)[1:-1]

    def message(self, conversation: int, turn: int, tokens: int) -> bytes:
        """Return the user's message of a turn."""
        return self._prompts.prompt(self._number(conversation, turn), tokens)[1:-1]

    def answer(self, said: Said, conversation: int, turn: int, tokens: int) -> tuple[bytes, int]:
        """Return the answer to a turn, and how many tokens it has."""
        if said.ids:
            return b",".join(b"%d" % one for one in said.ids), len(said.ids)
        self.made_up += 1
        length = said.tokens if said.tokens > 0 else tokens
        number = self._number(conversation, turn, made_up=True)
        return self._prompts.prompt(number, length)[1:-1], length

    def prompt(self, parts: list[bytes]) -> bytes:
        """Return the list of all ids."""
        return b"[" + b",".join(parts) + b"]"


class TextHistories(Histories):
    """Text of a completion: what the model has answered goes on where the prompt ended."""

    def __init__(self, nonce: int, prompts: TextPrompts) -> None:
        super().__init__(nonce)
        self._prompts = prompts

    def system(self, tokens: int) -> bytes:
        """Return the system prompt of this length."""
        return self._prompts.prompt(self._system_number, tokens)[1:-1] + b" "

    def message(self, conversation: int, turn: int, tokens: int) -> bytes:
        """Return the user's message of a turn."""
        return b" " * (turn > 0) + self._prompts.prompt(self._number(conversation, turn), tokens)[1:-1]

    def answer(self, said: Said, conversation: int, turn: int, tokens: int) -> tuple[bytes, int]:
        """Return the answer to a turn."""
        return json.dumps(said.text).encode()[1:-1], -1

    def prompt(self, parts: list[bytes]) -> bytes:
        """Return the text of all."""
        return b'"' + b"".join(parts) + b'"'


class ChatHistories(Histories):
    """Chat messages: system, user, assistant, user ..."""

    def __init__(self, nonce: int, prompts: TextPrompts) -> None:
        super().__init__(nonce)
        self._prompts = prompts

    def system(self, tokens: int) -> bytes:
        """Return the system prompt of this length."""
        return _message(b"system", self._prompts.prompt(self._system_number, tokens))

    def message(self, conversation: int, turn: int, tokens: int) -> bytes:
        """Return the user's message of a turn."""
        return _message(b"user", self._prompts.prompt(self._number(conversation, turn), tokens))

    def answer(self, said: Said, conversation: int, turn: int, tokens: int) -> tuple[bytes, int]:
        """Return the answer to a turn."""
        return _message(b"assistant", json.dumps(said.text).encode()), -1

    def prompt(self, parts: list[bytes]) -> bytes:
        """Return the list of all messages."""
        return b"[" + b",".join(parts) + b"]"


def histories_of(endpoint: HttpEndpoint, seed: int, nonce: int) -> Histories:
    """Return who writes the conversations of a level for a service, as it wants to be asked."""
    engine = endpoint.engine
    if engine.takes_token_ids:
        return IdHistories(nonce, seed, endpoint.vocabulary_size)
    prompts = TextPrompts(seed, endpoint.words)
    return ChatHistories(nonce, prompts) if engine.api == "chat" else TextHistories(nonce, prompts)


def _message(role: bytes, content: bytes) -> bytes:
    return b'{"role":"' + role + b'","content":' + content + b"}"
