"""Networks of tokens and addresses of peers: what is taken, what it is made of, and what is compared."""

from ipaddress import ip_address, ip_network

import pytest

from rolecall.errors import InvalidField
from rolecall.formats.networks import (
    MAX_NETWORKS,
    format_networks,
    is_within,
    parse_address,
    parse_networks,
    peer_address,
    peer_network,
)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("192.0.2.7", "192.0.2.7/32"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("2001:DB8::/32", "2001:db8::/32"),
        ("2001:db8::7", "2001:db8::7/128"),
        ("::/0", "::/0"),
        ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
        ("::ffff:192.0.2.7", "192.0.2.7/32"),
        ("::ffff:0:0/96", "0.0.0.0/0"),
    ],
)
def test_network_is_read_in_one_form(text: str, meant: str) -> None:
    """A network, or one address; IPv4-mapped IPv6 ones are IPv4."""
    assert format_networks(parse_networks([text])) == [meant]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "here",
        "10.0.0.0/33",
        "10.0.0.0/",
        "10.0.0.0/-1",
        "10.0.0.0/255.0.0.0",
        "10.0.0.0/0.255.255.255",
        "10.0.0/8",
        "010.0.0.0/8",
        "10.0.0.0/8 ",
        "\u0661\u0660.0.0.0/8",
        "fe80::1%eth0/64",
        "2001:db8::/129",
        "rcp_0000000000000000000000_0000000000000000",
        "1" * 100_000,
    ],
)
def test_what_is_no_network_is_refused_by_its_place(text: str) -> None:
    """Masks, scopes, prefixes out of range and anything else are refused; what looks like no address isn't repeated."""
    with pytest.raises(InvalidField) as caught:
        parse_networks(["10.0.0.0/8", text])

    assert caught.value.field == "networks[1]"
    assert "write it as" in caught.value.message
    assert len(caught.value.message) < 200
    assert "rcp_" not in caught.value.message


def test_address_within_a_network_is_refused_with_both_readings() -> None:
    """Host bits beyond the prefix are a mistake; the message has the network and the address."""
    with pytest.raises(InvalidField, match=r"`10\.0\.0\.0/8` for the network, or `10\.1\.2\.3`"):
        parse_networks(["10.1.2.3/8"])


def test_networks_are_bounded_and_each_is_kept_once() -> None:
    """Twenty are accepted and one more is refused; a network that is given twice is one."""
    most = [f"10.{number}.0.0/16" for number in range(MAX_NETWORKS)]

    assert format_networks(parse_networks(most)) == most
    assert format_networks(parse_networks(["10.0.0.0/8", "::ffff:10.0.0.0/104"])) == ["10.0.0.0/8"]
    with pytest.raises(InvalidField) as caught:
        parse_networks([*most, "192.0.2.7"])
    assert caught.value.field == "networks"


@pytest.mark.parametrize(
    ("inner", "outer", "within"),
    [
        (["10.0.0.0/8"], [], True),
        ([], [], True),
        ([], ["10.0.0.0/8"], False),
        (["10.1.0.0/16"], ["10.0.0.0/8"], True),
        (["10.0.0.0/8"], ["10.0.0.0/8"], True),
        (["10.0.0.0/7"], ["10.0.0.0/8"], False),
        (["10.1.0.0/16", "192.0.2.7"], ["10.0.0.0/8"], False),
        (["10.1.0.0/16", "192.0.2.7"], ["192.0.2.0/24", "10.0.0.0/8"], True),
        (["2001:db8::/48"], ["2001:db8::/32"], True),
        (["10.0.0.0/8"], ["::/0"], False),
        (["::/0"], ["0.0.0.0/0"], False),
    ],
)
def test_networks_within_others(inner: list[str], outer: list[str], within: bool) -> None:
    """Each of them lies in one of the others; none at all, which means every network, lies in none."""
    assert is_within(parse_networks(inner), parse_networks(outer)) is within


@pytest.mark.parametrize(
    ("peer", "address", "network"),
    [
        ("ipv4:192.0.2.7:4711", "192.0.2.7", "192.0.2.7"),
        ("ipv6:%5B2001:db8:1:2:3::7%5D:4711", "2001:db8:1:2:3::7", "2001:db8:1:2::/64"),
        ("ipv6:[::1]:4711", "::1", "::/64"),
        ("ipv6:%5B::ffff:192.0.2.7%5D:4711", "192.0.2.7", "192.0.2.7"),
        ("ipv6:%5Bfe80::1%25eth0%5D:4711", "fe80::1", "fe80::/64"),
        ("unix:/run/rolecall.sock", None, "unix"),
        ("unix:", None, "unix"),
        ("unix-abstract:rolecall", None, "unix-abstract"),
        ("vsock:2:50051", None, "vsock"),
        ("ipv4:somewhere:1", None, "ipv4"),
        ("unknown", None, "unknown"),
        ("", None, ""),
    ],
)
def test_peer_has_an_address_and_a_network(peer: str, address: str | None, network: str) -> None:
    """Peers by IP have an address, mapped ones their IPv4 one; all others have none, and are one network by kind."""
    assert peer_address(peer) == (ip_address(address) if address else None)
    assert peer_network(peer) == network


@pytest.mark.parametrize("text", ["10.1.1.1%eth0", "10.1.1.1%", "010.1.1.1", "10.1.1.1:80", "[::1]", "::1 ", ""])
def test_malformed_address_is_none(text: str) -> None:
    """Text that is no address is none; a scope stands behind an IPv6 address only."""
    assert parse_address(text) is None
    assert parse_address("fe80::1%eth0") == ip_address("fe80::1")


def test_mapped_peer_is_in_the_ipv4_network() -> None:
    """The peer of a socket for both versions is compared by its IPv4 address."""
    assert peer_address("ipv6:%5B::ffff:10.1.2.3%5D:1") in ip_network("10.0.0.0/8")
