"""What the local servers (`parl view`, `parl serve`) share: an address to listen at, and the names they answer to."""

from __future__ import annotations

import socket
from contextlib import suppress

from parl.core.errors import ConfigError


def listen(host: str, port: int | None) -> socket.socket:
    """A listening socket; without a port, at a free one. Raises ConfigError: the port or host is not to be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port or 0))
        listening.listen()
    except OSError as error:
        listening.close()
        way_out = (
            "Choose another --port, or leave it out for a free one."
            if port
            else "Choose another --host."
        )
        raise ConfigError(
            f"{host}:{port or 'any port'} cannot be used: {error.strerror}. {way_out}"
        ) from None
    return listening


def url(host: str, listening: socket.socket) -> str:
    """Example: http://127.0.0.1:8000"""
    return f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"


def own_names(host: str) -> list[str]:
    """Names under which a server may be asked; others are refused (DNS rebinding)."""
    names = {"127.0.0.1", "localhost", "[::1]", f"[{host}]" if ":" in host else host}
    if host in ("0.0.0.0", "::"):  # everybody may ask: by this machine's own names and addresses
        name = socket.gethostname()
        names |= {name, socket.getfqdn()}
        with suppress(OSError):
            names |= set(socket.gethostbyname_ex(name)[2])
    return sorted(names)
