"""Local servers (`parl view`, `parl serve`): a listening socket, and the names they answer to."""

from __future__ import annotations

import socket
from contextlib import suppress

from parl.core.errors import ConfigError


def listen(host: str, port: int | None) -> socket.socket:
    """Return a listening socket.

    Args:
        host: a name or an address of this machine.
        port: None for a free one.

    Raises:
        ConfigError: the port or host cannot be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    # Without it a server that was just stopped keeps its port for a minute.
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port or 0))
        listening.listen()
    except OSError as error:
        listening.close()
        way_out = "Choose another --host."
        if port:
            way_out = "Choose another --port, or leave it out for a free one."
        raise ConfigError(
            f"{host}:{port or 'any port'} cannot be used: {error.strerror}. {way_out}"
        ) from None
    return listening


def url(host: str, listening: socket.socket) -> str:
    """Return the address of a server.

    Example:
        http://127.0.0.1:8000
    """
    port = listening.getsockname()[1]
    return f"http://{_in_url(host)}:{port}"


def own_names(host: str) -> list[str]:
    """Return the host names under which a server may be asked, sorted.

    Requests for other names are refused: a page of another site could reach the server by DNS
    rebinding.
    """
    names = {"127.0.0.1", "localhost", "[::1]", _in_url(host)}
    if host in ("0.0.0.0", "::"):
        # The server is open to other machines, which know this one by its names and addresses.
        name = socket.gethostname()
        names |= {name, socket.getfqdn()}
        with suppress(OSError):
            names |= set(socket.gethostbyname_ex(name)[2])
    return sorted(names)


def _in_url(host: str) -> str:
    """Return a host as a URL has it: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host
