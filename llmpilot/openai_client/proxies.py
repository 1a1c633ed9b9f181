"""Which proxy stands between us and a service, by the rules of curl. Knows nothing of sockets."""

import ipaddress
import os
import re
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from llmpilot.errors import ConfigError

AUTO, NONE = "auto", "none"
SETTING = "deployment.proxy"
EXAMPLE = "http://proxy.example.com:3128"
DEFAULT_PORT = {"http": 1080, "https": 443}
"""Of a proxy, as curl has it."""


@dataclass(frozen=True)
class Proxy:
    """An HTTP proxy. `authorization` is the value of Proxy-Authorization, or ""; never shown."""

    host: str
    port: int
    tls: bool
    authorization: str = field(default="", repr=False)

    @property
    def shown(self) -> str:
        """Its URL without user and password."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}"

    @property
    def secrets(self) -> tuple[str, ...]:
        """What of it must not be shown: user and password as they are sent, and the password."""
        pair = self.authorization.partition(" ")[2]
        return (pair, b64decode(pair).decode().partition(":")[2]) if pair else ()


class ProxyError(ConnectionError):
    """There is no way through the proxy. `kind` is the failure's."""

    kind = "proxy_failed"


class ProxyUnreachableError(ProxyError):
    """Nobody answers at the proxy's address."""

    kind = "proxy_unreachable"


class ProxyRefusedError(ProxyError):
    """The proxy has answered, and did not let us through; `status` 0: with something that is no HTTP."""

    kind = "proxy_refused"

    def __init__(self, words: str, status: int = 0) -> None:
        super().__init__(words)
        self.status = status


def refused(proxy: str, status: int, reason: str = "") -> ProxyRefusedError:
    """Return the error of a proxy (its URL, without a password) that answered with this status."""
    if status == 407:
        return ProxyRefusedError(f"the proxy {proxy} wants a user and a password, or other ones (407)", 407)
    said = f"{status} {reason}".strip() if status else "something that is no HTTP"
    return ProxyRefusedError(f"the proxy {proxy} answered {said}, and did not connect us", status)


def proxy_for(url: str, setting: str = AUTO, environment: Mapping[str, str] = os.environ) -> str | None:
    """Return the URL of the proxy for requests to `url`, which may hold a password; None: straight there.

    `setting` is a proxy's URL, "none", or "auto": as the environment says, by curl's rules. These are
    http_proxy (in lower case only: a web server sets HTTP_PROXY from a request's field "Proxy"), https_proxy
    or HTTPS_PROXY, all_proxy or ALL_PROXY, and no_proxy or NO_PROXY: hosts and their subdomains, addresses
    and networks, or * for every host. "auto" never sends what is for this machine itself to a proxy.

    Raises:
        ConfigError: it is no URL of an HTTP proxy; a SOCKS proxy is none.
    """
    setting = setting.strip()
    if setting.lower() in ("", NONE):
        return None
    if setting.lower() != AUTO:
        read_proxy(setting, SETTING)
        return setting
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    names = ("http_proxy",) if parts.scheme == "http" else ("https_proxy", "HTTPS_PROXY")
    for name in (*names, "all_proxy", "ALL_PROXY"):
        given = environment.get(name, "").strip()
        if not given:
            continue
        if _is_loopback(host) or _is_excepted(host, port, _first(environment, "no_proxy", "NO_PROXY")):
            return None
        read_proxy(given, name)
        return given
    return None


def read_proxy(url: str, named: str = SETTING) -> Proxy:
    """Return what a proxy's URL says; one without a scheme is http://.

    Raises:
        ConfigError: it is no URL of an HTTP proxy; `named` is the key or variable that holds it.
    """
    scheme, separator, _ = url.partition("://")
    whole = url if separator else f"http://{url}"
    scheme = scheme.lower() if separator else "http"
    if scheme.startswith("socks"):
        raise ConfigError(
            f"{named} names a SOCKS proxy; only HTTP proxies are supported",
            given=f"{named}={_shown(url)}",
            cure=f"give an HTTP proxy such as {EXAMPLE}, or go straight to the service: {SETTING}=none",
        )
    try:
        parts = urlsplit(whole)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if scheme not in DEFAULT_PORT or not host or any(c.isspace() or not c.isprintable() for c in whole):
        raise ConfigError(
            f"{named} is no URL of an HTTP proxy",
            given=f"{named}={_shown(url)}",
            cure=f"give one such as {EXAMPLE}, or go straight to the service: {SETTING}=none",
        )
    authorization = ""
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        authorization = f"Basic {b64encode(pair.encode()).decode()}"
    return Proxy(host, port or DEFAULT_PORT[scheme], scheme == "https", authorization)


def _shown(url: str) -> str:
    """Return a proxy's URL with user and password hidden, whatever is wrong with it."""
    head, at, place = url.rpartition("@")
    scheme, separator, _ = head.partition("://")
    return f"{scheme + separator if separator else ''}***@{place}" if at else url


def _first(environment: Mapping[str, str], *names: str) -> str:
    return next((environment[name] for name in names if environment.get(name)), "")


def _is_loopback(host: str) -> bool:
    address = _address(host)
    if address is not None:
        return address.is_loopback
    name = host.lower().rstrip(".")
    return name == "localhost" or name.endswith(".localhost")


def _is_excepted(host: str, port: int, exceptions: str) -> bool:
    """Whether a list such as `NO_PROXY` names the host: itself, its domain, or a network it is in."""
    address, name = _address(host), host.lower().rstrip(".")
    for entry in filter(None, re.split(r"[\s,]+", exceptions)):
        if entry == "*":
            return True
        wanted = entry.lower()
        found = re.fullmatch(r"(\[[^]]*\]|[^:]*):(\d+)", wanted)
        if found:
            wanted = found[1]
            if int(found[2]) != port:
                continue
        wanted = wanted.strip("[]").strip(".")
        if address is not None:
            try:
                if address in ipaddress.ip_network(wanted, strict=False):
                    return True
            except ValueError:
                continue
        elif wanted and (name == wanted or name.endswith(f".{wanted}")):
            return True
    return False


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return None
