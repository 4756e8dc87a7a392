# Only this file decides which machine a text means. What it cannot read is refused, never guessed.
"""Names and addresses in one form: what a program asks for and what a policy lists can be compared.

A name is lower-case ASCII (IDNA, UTS 46) without its last dot. What ends in a number is an IPv4 address, as
browsers and C libraries read it (https://url.spec.whatwg.org/#concept-ipv4-parser): decimal, octal, hexadecimal,
one to four parts. An IPv6 address that only wraps an IPv4 one (``::ffff:a.b.c.d``) is that one.
"""

from __future__ import annotations

import re
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
)

from ghost_mcp.errors import InvalidArgument

__all__ = ["Address", "embedded", "forbidden", "is_public", "normal_host", "read_port", "unwrapped"]

Address = IPv4Address | IPv6Address

MAX_TEXT = 512
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\Z")
_NUMBER = re.compile(r"(?:0x[0-9a-f]*|[0-9]+)\Z")

# Where clouds answer with the credentials of the machine that asks, and which are no link-local addresses:
# EC2 over IPv6, Alibaba, Oracle, Azure's wire server.
_METADATA: frozenset[Address] = frozenset(
    ip_address(text)
    for text in ("fd00:ec2::254", "100.100.100.200", "192.0.0.192", "168.63.129.16")
)
# IPv6 that carries packets to an IPv4 address of the sender's choice. RFC 3056, 4380, 4291 (compatible), 7915 (translated).
_TUNNELS = tuple(
    IPv6Network(text) for text in ("2002::/16", "2001::/32", "::/96", "::ffff:0:0:0/96")
)
_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052; the local-use prefix of RFC 8215 is no public one
_NAT64_LOCAL = IPv6Network("64:ff9b:1::/48")
_SITE_LOCAL = IPv6Network("fec0::/10")
_THIS_NETWORK = IPv4Network("0.0.0.0/8")
_RESERVED = IPv4Network("240.0.0.0/4")


def normal_host(text: str) -> str | Address:
    """The one form of a name, or the address that it means. Raises InvalidArgument for neither."""
    if not 0 < len(text) <= MAX_TEXT:
        raise _unreadable(text)
    if text.startswith("[") and text.endswith("]"):
        return _ipv6(text[1:-1], text)
    if ":" in text:
        return _ipv6(text, text)
    name = _ascii(text).removesuffix(".")
    labels = name.split(".")
    if labels and _NUMBER.match(labels[-1]):
        return _ipv4(labels, text)
    if len(name) > 253 or not all(_LABEL.match(label) for label in labels):
        raise _unreadable(text)
    return name


def _ascii(text: str) -> str:
    if text.isascii():
        return text.lower()
    import idna

    try:
        return idna.encode(text, uts46=True).decode("ascii").lower()
    except idna.IDNAError as exc:
        raise _unreadable(text) from exc


def _ipv6(text: str, given: str) -> Address:
    try:  # a zone, as in fe80::1%eth0, names an interface of the host's
        return unwrapped(IPv6Address(text)) if "%" not in text else _refuse(given)
    except ValueError as exc:
        raise _unreadable(given) from exc


def _ipv4(parts: list[str], given: str) -> IPv4Address:
    if len(parts) > 4:
        raise _unreadable(given)
    try:
        numbers = [_number(part) for part in parts]
    except ValueError as exc:
        raise _unreadable(given) from exc
    *first, last = numbers
    if any(number > 255 for number in first) or last >= 256 ** (5 - len(numbers)):
        raise _unreadable(given)
    return IPv4Address(last + sum(n << (8 * (3 - place)) for place, n in enumerate(first)))


def _number(text: str) -> int:
    if not _NUMBER.match(text) or len(text) > 16:
        raise ValueError(text)
    if text.startswith("0x"):
        return int(text[2:] or "0", 16)
    return int(text, 8) if len(text) > 1 and text.startswith("0") else int(text)


def read_port(text: str) -> int:
    """A port from its digits. Raises InvalidArgument."""
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) < 65536):
        raise InvalidArgument(f"not a port: {ascii(text)[:40]}")
    return int(text)


def unwrapped(address: Address) -> Address:
    """An IPv4 address that stands in an IPv6 one only as another way to write it."""
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def embedded(address: Address) -> Address:
    """The address a packet to this one really goes to, behind a NAT64 gateway."""
    if isinstance(address, IPv6Address) and address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return unwrapped(address)


def forbidden(address: Address) -> str:
    """Why nobody's policy can list this address; empty when one can."""
    address = embedded(address)
    if address in _METADATA or address.is_link_local:
        return "a link-local or metadata address, where machines tell their credentials"
    if address.is_multicast:
        return "a multicast address"
    if isinstance(address, IPv4Address):
        if address in _THIS_NETWORK or address in _RESERVED:
            return "an unspecified, broadcast or reserved address"
        return ""
    if address.is_unspecified:
        return "an unspecified address"
    if not address.is_loopback and any(address in tunnel for tunnel in _TUNNELS):
        return "an IPv6 address that tunnels to an IPv4 one"
    if address in _SITE_LOCAL or address in _NAT64_LOCAL:
        return "an address of a private gateway"
    return ""


def is_public(address: Address) -> bool:
    """Whether the address is one of the internet's: no loopback, no private or shared range."""
    address = embedded(address)
    return address.is_global and not forbidden(address)


def _refuse(text: str) -> Address:
    raise _unreadable(text)


def _unreadable(text: str) -> InvalidArgument:
    return InvalidArgument(f"not a host name or address: {ascii(text)[1:-1][:100]}")
