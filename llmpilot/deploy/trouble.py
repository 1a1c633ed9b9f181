"""What an exchange with a service that went wrong means, and how to mend it: in words, for its error."""

import os

import httpx

from llmpilot.deploy.exchange import MOST_BYTES, Answer, TooLongError
from llmpilot.deploy.served_text import shown

Trouble = tuple[str, str]
"""What is wrong, and how to mend it."""
START = "start the server, or correct deployment.url"


def of_no_answer(error: Exception, url: str, what: str, timeout_s: float) -> Trouble:
    """Return the trouble of a request (`what`: its method and path) that had no whole answer."""
    scheme, _, rest = url.partition("://")
    other = f"deployment.url=http://{rest}" if scheme == "https" else f"deployment.url=https://{rest}"
    said = shown(_words(error)) or type(error).__name__
    if isinstance(error, httpx.ConnectTimeout):
        hint = f"; if it speaks no TLS: {other}" if scheme == "https" else ""
        return f"{url} does not answer: connecting to it timed out", f"{START}{hint}"
    if isinstance(error, TimeoutError | httpx.TimeoutException):
        return (
            f"{url} does not answer: {what} timed out, without a whole answer in {timeout_s:g} s",
            "see whether the server is overloaded; deployment.client.request_timeout_s=... waits longer",
        )
    if isinstance(error, TooLongError):
        return (
            f"{url} answers {what} without end: with more than {MOST_BYTES // 1_000_000} MB",
            "see the server's log; another service may be at this URL",
        )
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return (
            f"{url} has a certificate that this machine does not trust: {said}",
            "if you do: deployment.verify_tls=false; or correct the host in deployment.url",
        )
    if scheme == "https" and "SSL" in str(error):
        return f"{url} speaks no TLS that we know: {said}", f"if it speaks none: {other}"
    if isinstance(error, httpx.ConnectError | UnicodeError):
        return f"{url} cannot be reached: {said}", START
    first = what.startswith("GET")  # later ones have been understood
    hint = f"; if it speaks TLS: {other}" if first and scheme == "http" else ""
    return f"{url} gave no whole answer to {what}: {said}", f"{START}{hint}"


def _words(error: BaseException) -> str:
    """Return what the operating system says of it, which is more than the library does; else its words."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, ConnectionError) and found.errno:
            return os.strerror(found.errno)
        if isinstance(found, OSError) and found.strerror:
            return str(found)
        if isinstance(found, BaseExceptionGroup):  # one for each of the host's addresses
            found = found.exceptions[0]
        else:
            found = found.__cause__ or found.__context__
    return str(error)


def of_redirect(answer: Answer, url: str, path: str) -> Trouble | None:
    """Return the trouble of a service that sends elsewhere; None where the answer does not."""
    location = answer.headers.get("location", "")
    if not 300 <= answer.status < 400 or not location:
        return None
    goal = shown(location.partition("?")[0])
    there, found, _ = goal.rpartition(path)
    if found and there.startswith(("http://", "https://")):
        cure = f"deployment.url={there}, if that is the service"
    else:
        cure = "correct deployment.url; a proxy or a login page may stand before the service"
    return f"{url} answered {path} with {answer.status}: go to {goal}", cure


def of_limit(answer: Answer, url: str, path: str) -> Trouble | None:
    """Return the trouble of a service that takes no more requests for now; None where it does."""
    if answer.status != 429:
        return None
    after = answer.headers.get("retry-after", "")
    wait = f"; it asks to wait for {shown(after)[:40]} s" if after.isdecimal() else ""
    return (
        f"{url} takes no more requests now ({path}: 429{wait}): {shown(answer.text) or '(no reason given)'}",
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
