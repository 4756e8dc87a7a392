"""The policy language and the names in it, against whatever text there is."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

from hypothesis import example, given
from hypothesis import strategies as st

from ghost_mcp.egress.hosts import forbidden, is_public, normal_host
from ghost_mcp.egress.policy import Policy, Target, known_rules
from ghost_mcp.errors import InvalidArgument

PIECES = st.sampled_from(
    [
        *"0123456789abcdefxX.:[]/*@%-_ ",
        "127",
        "0x7f",
        "::",
        "ffff",
        "org",
        "ü",
        "。",
        "1",
        "xn--",
        "\0",
    ]
)
TEXTS = st.one_of(st.text(max_size=80), st.lists(PIECES, max_size=16).map("".join))
V4 = st.integers(0, 2**32 - 1).map(IPv4Address)
V6 = st.integers(0, 2**128 - 1).map(IPv6Address)


@given(TEXTS)
@example("xn--a")
@example("１.1")
def test_a_host_is_read_to_one_form_or_refused(text: str) -> None:
    try:
        form = normal_host(text)
    except InvalidArgument:
        return
    assert normal_host(str(form)) == form
    if isinstance(form, str):
        assert form.isascii()
        assert form == form.lower()
        assert not set(form) & set("/:@%[] \0")
        assert not form.rpartition(".")[2].isdigit()


@given(TEXTS)
def test_a_rule_is_read_or_refused_and_opens_nothing_forbidden(text: str) -> None:
    try:
        rules = known_rules([text])
    except InvalidArgument:
        return
    policy = Policy(open=False, rules=rules)
    for address in ("127.0.0.1", "::1", "10.0.0.1"):
        listed = any(rule.covers(ip_address(address)) for rule in rules)
        asked = Target.read("some.example", 80)
        assert not policy.address(asked, ip_address(address), own=True).allowed or listed
    for address in ("169.254.169.254", "0.0.0.0", "fe80::1", "ff02::1", "::ffff:169.254.169.254"):
        asked = Target.read(address, 80)
        assert not policy.address(asked, ip_address(address)).allowed


@given(st.one_of(V4, V6))
def test_open_never_reaches_what_is_not_the_internets(address: IPv4Address | IPv6Address) -> None:
    target = Target.read(str(address), 443)
    verdict = Policy(open=True, rules=()).address(target, address)
    assert verdict.allowed == is_public(address)
    if verdict.allowed:
        assert not forbidden(address)
        assert address.is_global


@given(V4)
def test_every_way_to_write_an_address_is_that_address(address: IPv4Address) -> None:
    number = int(address)
    octets = address.packed
    for text in (
        str(number),
        hex(number),
        "0" + oct(number)[2:] if number else "0",
        ".".join(hex(octet) for octet in octets),
        ".".join("0" + oct(octet)[2:] for octet in octets),
        f"{octets[0]}.{number & 0xFFFFFF}",
        f"[::ffff:{address}]",
        f"{address}.",
    ):
        assert normal_host(text) == address
