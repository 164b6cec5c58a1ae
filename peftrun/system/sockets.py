"""Addresses that a server listens at: who reaches them, and which it cannot have. Light."""

import errno
import ipaddress
import socket

BIND_ERRORS = (OSError, UnicodeError)  # a name that is no host's may also be none that can be encoded
HOST_ERRNOS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


def explain_bind_error(host: str, port: int, error: OSError | UnicodeError) -> str:
    """One line: whether the host or the port is at fault, and what to type."""
    reason = getattr(error, "strerror", None) or str(error)
    if isinstance(error, socket.gaierror | UnicodeError) or error.errno in HOST_ERRNOS:
        return f"action.host={host}: is no address of this machine ({reason}); type action.host=127.0.0.1"
    return f"action.port={port}: cannot be had on action.host={host} ({reason}); type action.port=0 for a free one"


def is_this_machine(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
