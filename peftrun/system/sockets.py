"""Addresses that a server listens at: errors of binding, and which are local. Light."""

import errno
import ipaddress
import socket

BIND_ERRORS = (OSError, UnicodeError)  # UnicodeError: a host name that IDNA cannot encode
HOST_ERRNOS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


def explain_bind_error(host: str, port: int, error: OSError | UnicodeError) -> str:
    """One line: whether the host or the port is at fault, and what to type."""
    reason = getattr(error, "strerror", None) or str(error)
    if isinstance(error, socket.gaierror | UnicodeError) or error.errno in HOST_ERRNOS:
        return f"action.host={host}: is no address of this machine ({reason}); type action.host=127.0.0.1"
    return f"action.port={port}: cannot be had on action.host={host} ({reason}); type action.port=0 for a free one"


def is_this_machine(host: str) -> bool:
    """Whether the address is reachable from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
