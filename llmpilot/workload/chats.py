"""Conversations as texts (ShareGPT, chat messages): every answer is a request, all before it its input.

There is no tokenizer here: tokens are estimated from the length of the texts.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import ceil
from typing import Any

from llmpilot.errors import TraceError

CHARACTERS_PER_TOKEN = 4.0
"""Of English text, by OpenAI's rule of thumb ("What are tokens and how to count them?": 1 token is about 4
characters). Code and other scripts have fewer: lengths of such a trace are estimates, as its remarks say."""
ANSWERS = ("gpt", "assistant", "model", "chatgpt", "bard", "bing", "ai", "bot")
TURNS_KEYS = (("from", "value"), ("role", "content"))


@dataclass
class Chats:
    """What is counted of the conversations that have been read."""

    conversations: int = 0
    unanswered: int = 0
    """Conversations without a single answer to something: they make no request."""
    other_parts: int = 0
    """Pictures and other parts of messages that are no text, and count nothing."""


@dataclass
class Turns:
    """The requests of some conversations, one row each."""

    input_tokens: list[int] = field(default_factory=list)
    output_tokens: list[int] = field(default_factory=list)
    sessions: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.sessions)


def requests_of(
    rows: Iterator[dict[str, Any]], column: str, source: object, counted: Chats, at_once: int
) -> Iterator[Turns]:
    """Yield the requests of conversations, at least `at_once` a time but for the last.

    A request's input is all that was said before the answer, its output the answer. A conversation that
    begins with an answer has it as history. The session is the conversation's `id`, or else its number.

    Raises:
        TraceError: a conversation is not a list of messages with a role and a text.
    """
    turns = Turns()
    for number, row in enumerate(rows, start=1):
        messages = row.get(column)
        if not isinstance(messages, list):
            raise _no_chat(number, source, messages)
        counted.conversations += 1
        session = str(next((row[key] for key in ("id", "conversation_id") if row.get(key)), number))
        said, before = 0, len(turns)
        for message in messages:
            role, text = _read(message, number, source, counted)
            if role in ANSWERS and said:
                turns.input_tokens.append(tokens(said))
                turns.output_tokens.append(tokens(len(text)))
                turns.sessions.append(session)
            said += len(text)
        counted.unanswered += len(turns) == before
        if len(turns) >= at_once:
            yield turns
            turns = Turns()
    if len(turns):
        yield turns


def tokens(characters: int) -> int:
    """Return about how many tokens a text of so many characters has."""
    return ceil(characters / CHARACTERS_PER_TOKEN)


def _read(message: Any, number: int, source: object, counted: Chats) -> tuple[str, str]:
    """Return who says what; of a message in parts, their texts."""
    if isinstance(message, dict):
        for who, what in TURNS_KEYS:
            role, text = message.get(who), message.get(what)
            if not isinstance(role, str):
                continue
            if isinstance(text, list):
                parts = [part.get("text") if isinstance(part, dict) else part for part in text]
                counted.other_parts += sum(not isinstance(part, str) for part in parts)
                text = "".join(part for part in parts if isinstance(part, str))
            if text is None or isinstance(text, str):
                return role.lower(), text or ""
    raise _no_chat(number, source, message)


def _no_chat(number: int, source: object, given: Any) -> TraceError:
    return TraceError(
        "a conversation of the trace is not a list of messages",
        given=f"{str(given)[:80]} in conversation {number} of {source}",
        cure='give each as [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}], or with '
        '"role" and "content"',
    )
