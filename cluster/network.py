"""Which network interface a rank exchanges gradients by: the one that has the address by which Ray reaches it.

Left to itself gloo takes the interface of the address that the host's name resolves to. On Debian and Ubuntu that is
127.0.1.1, on which no other host answers.
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
"""Of `struct ifreq`: its name field, where the IPv4 address of a `sockaddr_in` after it begins, and enough for both."""
VARIABLES = {"GLOO_SOCKET_IFNAME": "{}", "NCCL_SOCKET_IFNAME": "={}"}
"""Environment variables that name an interface, and how; NCCL takes a name without `=` for a prefix."""
log = logging.getLogger(__name__)


def bind_to_interface_of(address: str, environment: MutableMapping[str, str] = os.environ) -> None:
    """Have gloo and NCCL bind to the interface of this host that has `address`, where the user has not named one.

    To be called before the process group is made. Where no interface has the address, a warning says what to set.
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
    """Return the name of the interface that has the IP address, None if none has. `addresses`: by interface."""
    asked = ipaddress.ip_address(address)
    return next((name for name, held in addresses.items() if ipaddress.ip_address(held) == asked), None)


def ipv4_addresses() -> dict[str, str]:
    """Return the first IPv4 address of each network interface of this Linux host that has one."""
    import fcntl

    addresses = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            request = struct.pack(f"{REQUEST_BYTES}s", name.encode()[: NAME_BYTES - 1])
            try:
                answer = fcntl.ioctl(asking.fileno(), SIOCGIFADDR, request)
            except OSError:  # EADDRNOTAVAIL: an interface without an IPv4 address
                continue
            addresses[name] = socket.inet_ntoa(answer[ADDRESS_OFFSET : ADDRESS_OFFSET + 4])
    return addresses
