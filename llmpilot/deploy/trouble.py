"""What an exchange with a service that went wrong means, and how to mend it: in words, for its error."""

import ssl

from llmpilot.deploy.exchange import Answer, NoAnswerError
from llmpilot.deploy.served_text import shown
from llmpilot.errors import PilotError


class ServiceError(PilotError):
    """A service cannot be reached, or is not what it should be."""


Trouble = tuple[str, str]
"""What is wrong, and how to mend it."""
START = "start the server, or correct deployment.url"
TRUST = (
    "if its certificate is of an authority of your own, name that: deployment.ca_file=FILE (PEM), or "
    "SSL_CERT_FILE=FILE in the environment; deployment.verify_tls=false trusts whoever answers"
)
WRONG_HOST = "correct the host in deployment.url; deployment.verify_tls=false trusts whoever answers"
PASTE = "paste the URL that requests are posted to, as in deployment.url=http://HOST/v1/chat/completions"
PROXY = "correct deployment.proxy or the variable that names it, or go straight there: deployment.proxy=none"


def of_no_answer(error: NoAnswerError, url: str, what: str, timeout_s: float, *, first: bool) -> Trouble:
    """Return the trouble of a request (`what`: its method and path) that had no whole answer.

    `first`: nothing that was sent before has been understood.
    """
    scheme, _, rest = url.partition("://")
    other = f"deployment.url=http://{rest}" if scheme == "https" else f"deployment.url=https://{rest}"
    said = shown(str(error))
    cause = error.__cause__
    match error.kind:
        case "connect_timeout":
            hint = f"; if it speaks no TLS: {other}" if scheme == "https" else ""
            return f"{url} does not answer: connecting to it timed out", f"{START}{hint}"
        case "request_timeout":
            return (
                f"{url} does not answer: {what} timed out, without a whole answer in {timeout_s:g} s",
                "see whether the server is overloaded; deployment.client.request_timeout_s=... waits longer",
            )
        case "endless_answer":
            return (
                f"{url} answers {what} without end: with {said}",
                "see the server's log; another service may be at this URL",
            )
        case "proxy_unreachable" | "proxy_refused":
            return f"{url} cannot be reached: {said}", PROXY
        case "tls_failed" if isinstance(cause, ssl.SSLCertVerificationError):
            named = "not valid for" in said or "mismatch" in said
            return (
                f"{url} has a certificate that this machine does not trust: {said}",
                WRONG_HOST if named else TRUST,
            )
        case "tls_failed":
            return f"{url} speaks no TLS that we know: {said}", f"if it speaks none: {other}"
        case "client_out_of_sockets":
            return (
                f"{url} cannot be reached: {said}",
                "end programs that hold many connections, or raise `ulimit -n`",
            )
        case "connection_refused" | "unknown_name" | "connect_failed":
            return f"{url} cannot be reached: {said}", START
    hint = f"; if it speaks TLS: {other}" if first and scheme == "http" else ""
    return f"{url} gave no whole answer to {what}: {said}", f"{START}{hint}"


def of_redirect(answer: Answer, url: str, path: str, keep: str = "") -> Trouble | None:
    """Return the trouble of a service that sends elsewhere; None where the answer does not.

    `path` "": the request went to `url` itself. `keep` is what deployment.url must have behind the place that
    is named instead, such as `/v3`.
    """
    location = answer.headers.get("location", "")
    if not 300 <= answer.status < 400 or not location:
        return None
    goal = shown(location.partition("?")[0])
    if not path:
        # A slash behind it is what servers add to the name of a folder, which is no API.
        elsewhere = goal.startswith(("http://", "https://")) and goal.rstrip("/") != url
        cure = f"deployment.url={goal}, if that is the service; or {PASTE}" if elsewhere else PASTE
        return f"{url} answered a request with {answer.status}: go to {goal}", cure
    there, found, behind = goal.rpartition(path)
    if found and not behind.strip("/") and there.startswith(("http://", "https://")):
        cure = f"deployment.url={there}{keep}, if that is the service"
        if keep:
            cure += " (with the query that deployment.url has, if any)"
    else:
        cure = "correct deployment.url; a proxy or a login page may stand before the service"
    return f"{url} answered {path} with {answer.status}: go to {goal}", cure


def of_limit(answer: Answer, url: str, path: str) -> Trouble | None:
    """Return the trouble of a service that takes no more requests for now; None where it does."""
    if answer.status != 429:
        return None
    after = answer.headers.get("retry-after", "")
    where = path or "the URL itself"
    wait = f"; it asks to wait for {shown(after)[:40]} s" if after.isdecimal() else ""
    return (
        f"{url} takes no more requests now ({where}: 429{wait}): {shown(answer.text) or '(no reason given)'}",
        "try again later; a limit of requests would decide what is measured: raise it, in the server or "
        "for this key",
    )


def cure_of(status: int) -> str:
    """Return how to mend an answer of that status to a sound request."""
    if status in (502, 503, 504):
        return "it may still be loading, or what is behind it is down: see the server's log"
    if status >= 500:
        return "see the server's log"
    return "see the server's log; another service may be at this URL"
