"""What a cave's network rules mean, and which addresses no rule can open."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from ghost_mcp.egress.hosts import embedded, forbidden, is_public, normal_host
from ghost_mcp.egress.policy import Policy, Target, Verdict, read_rules
from ghost_mcp.errors import InvalidArgument
from ghost_mcp.spec import CaveSpec, NetworkPolicy


def policy(*rules: str, open: bool = False) -> Policy:
    return Policy(open=open, rules=read_rules(rules))


def asks(rules: Policy, host: str, port: int = 443) -> Verdict:
    return rules.target(Target.read(host, port))


def leads(rules: Policy, host: str, address: str, port: int = 443, *, own: bool = False) -> Verdict:
    return rules.address(Target.read(host, port), ip_address(address), own=own)


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("Example.ORG", "example.org"),
        ("example.org.", "example.org"),
        ("BÜCHER.example", "xn--bcher-kva.example"),
        ("xn--BCHER-kva.example", "xn--bcher-kva.example"),
        ("ｅｘａｍｐｌｅ.org", "example.org"),
        ("a_b.example", "a_b.example"),
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.1.", "127.0.0.1"),
        ("127.1", "127.0.0.1"),
        ("2130706433", "127.0.0.1"),
        ("0x7f000001", "127.0.0.1"),
        ("0x7f.1", "127.0.0.1"),
        ("0177.0.0.01", "127.0.0.1"),
        ("１２７.0.0.1", "127.0.0.1"),
        ("0", "0.0.0.0"),
        ("0x", "0.0.0.0"),
        ("[::1]", "::1"),
        ("::1", "::1"),
        ("[::ffff:127.0.0.1]", "127.0.0.1"),
        ("[::FFFF:7f00:1]", "127.0.0.1"),
        ("[0:0:0:0:0:0:0:1]", "::1"),
    ],
)
def test_one_machine_has_one_form(text: str, form: str) -> None:
    assert str(normal_host(text)) == form


@pytest.mark.parametrize(
    "text",
    [
        *("", ".", "a..b", "-a.example", "a-.example", "a b", "a/b", "a@b", "a\0b", "a%2e", "ex\nam.ple"),
        *("256.0.0.1", "1.2.3.4.5", "08", "999999999999", "a.1", "1.2.3.256", "127.0.0.1:80"),
        *("[::1", "::1]", "[127.0.0.1]", "[fe80::1%eth0]", "fe80::1%1", ":::", "[]", "x" * 64, "a." * 127 + "b"),
        *("\u202eexample.org", "exa\u200bmple.org.\u3002", "é" * 300),
    ],
    ids=ascii,
)  # fmt: skip
def test_what_is_no_host_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        normal_host(text)


@pytest.mark.parametrize(
    ("rule", "allowed", "refused"),
    [
        ("example.org", ["example.org", "EXAMPLE.org."], ["www.example.org", "example.org.evil", "xample.org"]),
        ("*.example.org", ["a.example.org", "a.b.example.org"], ["example.org", "badexample.org", "example.org.a"]),
        ("bücher.example", ["xn--bcher-kva.example", "BÜCHER.example"], ["bucher.example"]),
        ("@github", ["github.com", "raw.githubusercontent.com"], ["gist.github.com", "githubusercontent.com"]),
        ("192.0.2.7", [], ["192.0.2.7.example"]),
    ],
)  # fmt: skip
def test_names(rule: str, allowed: list[str], refused: list[str]) -> None:
    rules = policy(rule)
    assert [asks(rules, host).allowed for host in allowed] == [True] * len(allowed)
    assert [asks(rules, host).allowed for host in refused] == [False] * len(refused)


def test_ports_are_web_ports_unless_said() -> None:
    rules = policy(
        "a.example", "b.example:8080", "c.example:*", "b.example:22", "[2606:4700::1]:853"
    )
    allowed = {
        (host, port)
        for host in ("a.example", "b.example", "c.example")
        for port in (22, 80, 443, 8080)
        if asks(rules, host, port).allowed
    }
    assert allowed == {
        *(("a.example", 80), ("a.example", 443), ("b.example", 8080), ("b.example", 22)),
        *(("c.example", port) for port in (22, 80, 443, 8080)),
    }
    assert asks(rules, "2606:4700::1", 853).allowed
    assert asks(rules, "a.example", 22) == Verdict(
        allowed=False, rule="a.example", why="a.example does not cover port 22"
    )


def test_a_listed_name_reaches_the_internet_only() -> None:
    rules = policy("a.example")
    assert leads(rules, "a.example", "93.184.215.14").allowed
    assert not leads(rules, "b.example", "93.184.215.14").allowed
    assert not leads(rules, "a.example", "93.184.215.14", own=True).allowed
    for inside in (
        "127.0.0.1",
        "10.1.2.3",
        "192.168.0.1",
        "172.16.0.1",
        "100.64.0.1",
        "::1",
        "fd00::1",
    ):
        refused = leads(rules, "a.example", inside)
        assert (refused.allowed, refused.rule) == (False, "not public")


def test_numbers_open_what_is_not_public_for_names_and_numbers() -> None:
    rules = policy("db.example:5432", "10.0.0.0/8:5432", "127.0.0.1:8000")
    assert leads(rules, "db.example", "10.1.2.3", 5432).allowed
    assert leads(rules, "10.1.2.3", "10.1.2.3", 5432).allowed
    assert not leads(rules, "10.1.2.3", "10.1.2.3", 80).allowed
    assert not asks(rules, "other.example", 5432).allowed  # not even looked up
    assert leads(rules, "127.0.0.1", "127.0.0.1", 8000, own=True).allowed
    assert leads(rules, "0x7f.1", "::ffff:127.0.0.1", 8000, own=True).allowed
    assert not leads(rules, "127.0.0.2", "127.0.0.2", 8000, own=True).allowed


def test_open_is_the_internet_and_what_is_listed() -> None:
    rules = policy("10.0.0.5:5432", open=True)
    assert asks(rules, "anything.example", 22).allowed
    assert leads(rules, "anything.example", "93.184.215.14", 22).allowed
    assert leads(rules, "10.0.0.5", "10.0.0.5", 5432).allowed
    for host, address, own in (
        ("x.example", "10.0.0.5", False),
        ("x.example", "127.0.0.1", True),
        ("x.example", "93.184.215.14", True),
        ("169.254.169.254", "169.254.169.254", False),
    ):
        assert not leads(rules, host, address, own=own).allowed


@pytest.mark.parametrize(
    "address",
    [
        *("169.254.169.254", "169.254.0.1", "100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254"),
        *("fe80::1", "fec0::1", "0.0.0.0", "0.1.2.3", "255.255.255.255", "240.0.0.1", "224.0.0.1", "ff02::1", "::"),
        *("::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "2002:7f00:1::", "2001:0:1::1", "::127.0.0.1", "::ffff:0:127.0.0.1"),
    ],
)  # fmt: skip
def test_what_no_rule_opens(address: str) -> None:
    found = ip_address(address)
    assert forbidden(found)
    assert not is_public(found)
    width = 8 if embedded(found).version == 4 else 7
    everything = (
        [f"{n << (8 - width)}.0.0.0/8" for n in range(256)] if width == 8 else [f"{address}/128"]
    )
    verdict = leads(policy(*everything, "a.example:*", open=True), "a.example", address)
    assert (verdict.allowed, verdict.rule) == (False, "never")


def test_addresses_behind_a_gateway_count_as_what_they_lead_to() -> None:
    assert is_public(ip_address("64:ff9b::5db8:d70e"))
    assert not is_public(ip_address("64:ff9b::a00:1"))
    assert not leads(policy("a.example"), "a.example", "64:ff9b::a00:1").allowed


@pytest.mark.parametrize(
    "rule",
    [
        *("", " ", "*", "*.", "a.example ", "https://a.example", "a.example/x", "a.example:0", "a.example:65536"),
        *("a.example:", "a.example:x", "a:b:c", "*.*.a", "a.*.b", "*.127.0.0.1", "10.0.0.1/8", "10.0.0.0/33"),
        *("0.0.0.0/0", "::/0", "@", "@nothing", "[::1", "[::1]x", "[a.example]:80", "fe80::1%eth0", "a@b", "x" * 400),
    ],
    ids=ascii,
)  # fmt: skip
def test_what_is_no_rule_is_refused_when_the_cave_is_described(rule: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        NetworkPolicy(mode="allow", allow=(rule,))
    assert "@pip" in caught.value.hint or not rule


def test_policies_in_a_spec() -> None:
    given = {
        "mode": "allow",
        "allow": ["@npm", "10.0.0.0/8"],
        "connections": 4,
        "total_bytes": 4096,
    }
    spec = CaveSpec.from_dict({"network": given})
    assert CaveSpec.from_dict(spec.as_dict()) == spec
    assert spec.network.connections == 4
    for bad in (
        {"mode": "none", "allow": ["a.example"]},
        {"mode": "allow", "allow": "a.example"},
        {"mode": "allow", "allow": [7]},
        {"mode": "allow", "connections": 0},
        {"mode": "open", "bytes_per_s": 5},
        {"mode": "allow", "unknown": 1},
        {"mode": "allow", "allow": [f"n{number}.example" for number in range(1001)]},
    ):
        with pytest.raises(InvalidArgument):
            CaveSpec.from_dict({"network": bad})
