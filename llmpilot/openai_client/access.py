"""How a service is reached: its URL, whose certificates are trusted, through which proxy, in which HTTP."""

import socket
import ssl
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from llmpilot.openai_client.proxies import Proxy, read_proxy
from llmpilot.openai_client.tls import client_context
from llmpilot.secrets import redact


@dataclass(frozen=True, repr=False)
class Access:
    """How a service is reached; can be pickled. Its `repr` shows no passwords.

    `ca_file` has certificates to trust besides those that `tls` finds. `proxy` is the URL of an HTTP proxy,
    as `proxies.proxy_for` returns it; None: straight to the service. `http2`: no HTTP/1.1 is spoken.
    """

    url: str
    verify_tls: bool = True
    ca_file: str | None = None
    proxy: str | None = None
    http2: bool = False

    def __repr__(self) -> str:
        return redact(
            f"Access(url={self.url!r}, verify_tls={self.verify_tls}, ca_file={self.ca_file!r}, "
            f"proxy={self.proxy!r}, http2={self.http2})"
        )

    @property
    def secure(self) -> bool:
        """Whether TLS is spoken with the service."""
        return urlsplit(self.url).scheme == "https"

    @property
    def tunneled(self) -> bool:
        """Whether the proxy must connect us to the service, rather than pass on single requests."""
        return self.proxy is not None and (self.secure or self.http2)

    def context(self) -> ssl.SSLContext:
        """Return the TLS context, for those who do not connect with `connecting.connect`."""
        return client_context(self.verify_tls, self.ca_file)


Address = tuple[int, Any]
"""A family of addresses, and where to connect to in it, as `socket` has them."""


@dataclass(frozen=True)
class Target:
    """Where connections go: resolved addresses, of the proxy where there is one, and what is spoken there.

    The address that has answered goes first (see `connecting.connect`).

    `host` is whom the service's certificate must name. `tunnel` is the service's "host:port" where the proxy
    must connect us to it; "" where there is no proxy, or where it passes on every single request.
    """

    host: str
    addresses: list[Address]
    tls: ssl.SSLContext | None = None
    http2: bool = False
    proxy: Proxy | None = None
    proxy_tls: ssl.SSLContext | None = None
    tunnel: str = ""


def resolve(access: Access) -> Target:
    """Return the target of an access; the name is looked up once, here. Behind a proxy, the proxy does that.

    Raises:
        OSError: the name is not known.
        ConfigError: a file of certificates cannot be used, or the proxy is none that we can use.
    """
    parts = urlsplit(access.url)
    host, port = parts.hostname or "", parts.port or (443 if access.secure else 80)
    tls = access.context() if access.secure else None
    if tls is not None:
        tls.set_alpn_protocols(["h2" if access.http2 else "http/1.1"])
    if access.proxy is None:
        return Target(host, _addresses(host, port), tls, access.http2)
    proxy = read_proxy(access.proxy)
    return Target(
        host,
        _addresses(proxy.host, proxy.port, "the proxy "),
        tls,
        access.http2,
        proxy,
        proxy_tls=access.context() if proxy.tls else None,
        tunnel=f"{f'[{host}]' if ':' in host else host}:{port}" if access.tunneled else "",
    )


def _addresses(host: str, port: int, whose: str = "") -> list[Address]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise socket.gaierror(error.errno, f"{error.strerror}: {whose}{host}") from None
    except UnicodeError:
        raise socket.gaierror(socket.EAI_NONAME, f"not a name of a host: {whose}{host}") from None
    return [(int(family), address) for family, _, _, _, address in found]
