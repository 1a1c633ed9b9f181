"""A listening socket, or in words why there is none."""

import os
import socket

from llmpilot.errors import ConfigError, PilotError


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; `port` 0 takes any free one.

    Raises:
        ConfigError: the host is no address of this machine.
        PilotError: the port is taken, or cannot be used.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise ConfigError(
            f"host={host} is no address of this machine: {error}", cure="host=127.0.0.1"
        ) from None
    sock = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":  # elsewhere it would let two servers share the port
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(1024)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise PilotError(
            f"cannot listen on {host} port {port}: {os.strerror(error.errno or 0)}",
            cure="port=<another>, or port=0 for any free one",
        ) from None
    return sock
