"""The stack's ports on loopback: the usual one where it is free, any free one where it is taken."""

import socket

HOST = "127.0.0.1"
PREFERRED = {
    "lite": 54320,
    "gateway": 54321,
    "postgres": 54322,
    "chat": 54330,
    "embeddings": 54331,
    "functions": 54332,
    "aws": 54340,
}


def reserve(preferred: int | None) -> socket.socket:
    """A socket that is bound but never listens: nobody is given its port while the part behind it starts.

    Servers bind with SO_REUSEADDR or SO_REUSEPORT, which lets them in beside it.
    """
    held = _socket(socket.SO_REUSEADDR, socket.SO_REUSEPORT)
    held.bind((HOST, preferred if preferred and _is_free(preferred) else 0))
    return held


def number(held: socket.socket) -> int:
    """The port a reservation stands for."""
    port: int = held.getsockname()[1]
    return port


def url(port: int) -> str:
    """The HTTP origin on a port."""
    return f"http://{HOST}:{port}"


def _is_free(port: int) -> bool:
    # Without SO_REUSEPORT, so that a server which shares its port still counts as a taken one.
    with _socket(socket.SO_REUSEADDR) as probe:
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def _socket(*options: int) -> socket.socket:
    made = socket.socket()
    for option in options:
        made.setsockopt(socket.SOL_SOCKET, option, 1)
    return made
