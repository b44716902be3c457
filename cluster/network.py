"""Choice of the network interface for gradients: the one with the address at which Ray reaches the rank.

By default gloo uses the interface of the address that the host's name resolves to. On Debian and Ubuntu that is
127.0.1.1, which no other host can reach.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
import struct
import sys
from collections.abc import Mapping, MutableMapping

SIOCGIFADDR = 0x8915
"""Linux's request for the IPv4 address of an interface (netdevice(7))."""
NAME_BYTES, ADDRESS_OFFSET, REQUEST_BYTES = 16, 20, 256
"""Layout of `struct ifreq`: length of the name field, offset of the IPv4 address in the `sockaddr_in` after it, and a
buffer size that holds both."""
VARIABLES = {"GLOO_SOCKET_IFNAME": "{}", "NCCL_SOCKET_IFNAME": "={}"}
"""Environment variables that name an interface, with their format; NCCL treats a name without `=` as a prefix."""
log = logging.getLogger(__name__)


def bind_to_interface_of(address: str, environment: MutableMapping[str, str] = os.environ) -> None:
    """Make gloo and NCCL bind to this host's interface with `address`, unless the user has set the variables.

    Call it before creating the process group. If no interface has the address, log a warning that says what to set.
    """
    unset = [variable for variable in VARIABLES if variable not in environment]
    if not unset:
        return
    if not sys.platform.startswith("linux"):
        log.info("the interface of %s is not looked for: SIOCGIFADDR is Linux's", address)
        return
    interface = interface_of(address, ipv4_addresses())
    if interface is None:
        log.warning(
            "no network interface of %s has Ray's address %s over IPv4; where ranks cannot reach each other, set %s",
            *(socket.gethostname(), address, " or ".join(unset)),
        )
        return
    for variable in unset:
        environment[variable] = VARIABLES[variable].format(interface)


def interface_of(address: str, addresses: Mapping[str, str]) -> str | None:
    """Return the name of the interface with the IP address, or None. `addresses` maps interface names to addresses."""
    parsed = ipaddress.ip_address(address)
    return next((name for name, other in addresses.items() if ipaddress.ip_address(other) == parsed), None)


def ipv4_addresses() -> dict[str, str]:
    """Return the first IPv4 address of each network interface of this Linux host that has one."""
    import fcntl

    addresses = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        for _, name in socket.if_nameindex():
            request = struct.pack(f"{REQUEST_BYTES}s", name.encode()[: NAME_BYTES - 1])
            try:
                answer = fcntl.ioctl(handle.fileno(), SIOCGIFADDR, request)
            except OSError:  # EADDRNOTAVAIL: an interface without an IPv4 address
                continue
            addresses[name] = socket.inet_ntoa(answer[ADDRESS_OFFSET : ADDRESS_OFFSET + 4])
    return addresses
