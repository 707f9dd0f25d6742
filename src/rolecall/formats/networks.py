"""Networks from which tokens may be used, and the addresses of peers. An IPv4-mapped IPv6 address is its IPv4 one."""

import ipaddress
import re
from collections.abc import Sequence
from functools import lru_cache
from urllib.parse import unquote

from rolecall.domain import Address, Networks
from rolecall.errors import InvalidField

__all__ = [
    "MAX_NETWORKS",
    "format_networks",
    "is_within",
    "parse_address",
    "parse_networks",
    "peer_address",
    "peer_network",
]

MAX_NETWORKS = 20
# `ipaddress` also takes masks for the number after the slash, and the scope of a link-local address.
_NETWORK_SHAPE = re.compile(r"[0-9A-Fa-f:.]{2,45}(/[0-9]{1,3})?")
_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")


def parse_networks(texts: Sequence[str], field: str = "networks") -> Networks:
    """Parse networks as `10.0.0.0/8`, `2001:db8::/32`, or single addresses. Raises `InvalidField` for `field`."""
    if len(texts) > MAX_NETWORKS:
        raise InvalidField(
            f"{field} has {len(texts)} networks, more than {MAX_NETWORKS}: join them to larger ones.", field=field
        )
    return tuple(dict.fromkeys(_network(text, f"{field}[{number}]") for number, text in enumerate(texts)))


def _network(text: str, field: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    example = "write it as `192.0.2.0/24` or `2001:db8::/32`, or one address as `192.0.2.7`"
    if not _NETWORK_SHAPE.fullmatch(text):
        raise InvalidField(f"{field} is no network: {example}.", field=field)
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError as error:
        raise InvalidField(f"{field}, `{text}`, is no network: {example}.", field=field) from error
    address = text.partition("/")[0]
    if network.network_address != ipaddress.ip_address(address):
        raise InvalidField(
            f"{field}, `{text}`, has an address within the network: write `{network}` for the network, or `{address}`"
            " for the address.",
            field=field,
        )
    if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(_MAPPED):
        # Peers with such an address are compared by their IPv4 one.
        mapped = ipaddress.IPv4Address(int(network.network_address) & 0xFFFFFFFF)
        return ipaddress.IPv4Network((mapped, network.prefixlen - 96))
    return network


def format_networks(networks: Networks) -> list[str]:
    """Return the text of each network."""
    return [str(network) for network in networks]


def is_within(inner: Networks, outer: Networks) -> bool:
    """Whether every address that `inner` takes is one that `outer` takes, by a single network of it."""
    if not outer:
        return True
    return bool(inner) and all(any(_is_subnet(each, of) for of in outer) for each in inner)


def _is_subnet(
    network: ipaddress.IPv4Network | ipaddress.IPv6Network, of: ipaddress.IPv4Network | ipaddress.IPv6Network
) -> bool:
    # Networks of different versions can't be compared.
    return network.network_address in of and network.prefixlen >= of.prefixlen


@lru_cache(8192)
def parse_address(text: str) -> Address | None:
    """Parse an IP address, a link-local one without its scope; None where `text` is none."""
    address, percent, _ = text.partition("%")
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return None
    if isinstance(parsed, ipaddress.IPv4Address):
        return None if percent else parsed
    return parsed.ipv4_mapped or parsed


def peer_address(peer: str) -> Address | None:
    """Return the IP address of a peer as grpc names it, as `ipv4:192.0.2.7:4711`; None for any other kind."""
    kind, host = _kind_and_host(peer)
    return parse_address(host) if kind in ("ipv4", "ipv6") else None


def peer_network(peer: str) -> str:
    """Return the machine behind a peer, or the network that an IPv6 machine has to itself; else the peer's kind."""
    address = peer_address(peer)
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address) if address else _kind_and_host(peer)[0]


def _kind_and_host(peer: str) -> tuple[str, str]:
    kind, _, rest = unquote(peer).partition(":")
    return kind, rest.rpartition(":")[0].strip("[]")
