"""Where a real service answers, and how its client behaves: what a deployment yields to the load test."""

from dataclasses import dataclass, field
from typing import Any

from pydantic import PositiveFloat, PositiveInt

from llmpilot.config import Facts
from llmpilot.deploy.nvml import Gpus
from llmpilot.engine.openai import Dialect, Fields, OpenAIEngine
from llmpilot.engine.server import ServerMetrics
from llmpilot.engine.words import WordCount
from llmpilot.errors import DoesNotFitError
from llmpilot.openai_client.access import Access


class ServerOutOfMemoryError(DoesNotFitError):
    """The server said that its memory does not suffice: an outcome of the measurement, not a failure."""

    outcome = "out_of_memory"


class ClientSettings(Facts):
    """The load test's client. `workers` null: two processes, more for many users on many cores.

    `token_timeout_s` bounds the wait between two pieces of an answer once it has begun, `request_timeout_s`
    the whole request. `calibrate` measures the client's own error after the ladder. A closed-loop user that
    failed waits `backoff_s`, doubling up to `max_backoff_s`.
    """

    workers: PositiveInt | None = None
    connect_timeout_s: PositiveFloat = 10.0
    token_timeout_s: PositiveFloat = 60.0
    request_timeout_s: PositiveFloat = 600.0
    calibrate: bool = True
    backoff_s: PositiveFloat = 0.1
    max_backoff_s: PositiveFloat = 5.0


@dataclass(frozen=True)
class HttpEndpoint:
    """A service that answers at `url` (no slash, no version of an API at its end).

    Its API begins at `api_path` below that (`posts_to_url`: requests go to `url` itself); `query` follows
    every path, without its question mark. `headers` and `query` may hold keys. `fields` says which of the
    dialect's fields it takes, `not_taken` which of the richest dialect it did not take when it was asked;
    `words` is how it counts prompts of words. `vocabulary_size` bounds the token ids of random prompts;
    None takes ids that every LLM has. `simulated`: our own emulator answers there, so nothing of it is a
    measurement of an engine. `metrics` is where it shows its own, `gpus` those of this machine that it runs
    on; None: nothing known. Worker processes get the endpoint without either. `ca_file`, `proxy` and
    `http2` are as in `Access`.
    """

    url: str
    model: str
    engine: OpenAIEngine
    dialect: Dialect
    headers: dict[str, str] = field(default_factory=dict, repr=False)
    verify_tls: bool = True
    vocabulary_size: int | None = None
    client: ClientSettings = field(default_factory=ClientSettings)
    simulated: bool = False
    metrics: ServerMetrics | None = None
    gpus: Gpus | None = field(default=None, repr=False)
    gpus_known: str = ""
    """Which GPUs are looked at, or why none is."""
    ca_file: str | None = None
    proxy: str | None = field(default=None, repr=False)
    http2: bool = False
    api_path: str = "/v1"
    posts_to_url: bool = False
    query: str = field(default="", repr=False)
    fields: Fields = field(default_factory=Fields)
    not_taken: tuple[str, ...] = ()
    words: WordCount = field(default_factory=WordCount)

    @property
    def access(self) -> Access:
        """Return how it is reached."""
        return Access(self.url, self.verify_tls, self.ca_file, self.proxy, self.http2)

    @property
    def path(self) -> str:
        """Where requests are posted to, below `url`."""
        return self.at(self._path)

    @property
    def _path(self) -> str:
        return "" if self.posts_to_url else self.api_path + self.engine.path

    def at(self, path: str) -> str:
        """Return a path below `url` with the query that every request carries."""
        return f"{path}?{self.query}" if self.query else path

    @property
    def wire(self) -> str:
        """How requests are put to it, in words: the API, what prompts are, and what it did not take."""
        prompts = "token ids" if self.engine.takes_token_ids else "text"
        left_out = f"; does not take {', '.join(self.not_taken)}" if self.not_taken else ""
        where = f"the URL itself, {self.engine.api}" if self.posts_to_url else self._path
        return f"{where}, prompts of {prompts}, dialect {self.dialect}{left_out}"

    @property
    def hardware(self) -> str | None:
        """What it really runs on; None: only a server on this machine is known so well."""
        return None

    def log(self) -> str | None:
        """Return what the server has said, secrets hidden; None: it writes its log elsewhere."""
        return None

    def raise_if_ended(self) -> None:
        """Raise what a server of ours died of if it no longer runs.

        Raises:
            ServerOutOfMemoryError: its log says so.
            ServiceError: of anything else.
        """

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"metrics": None, "gpus": None}
