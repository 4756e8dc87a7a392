# Only this file decides what a cave may reach. What it cannot read, it refuses.
"""The policy language, and the verdict on one name or address.

A rule of a policy's list is one of

==================  ==================================================================================
``example.org``     that name, on ports 80 and 443
``*.example.org``   every name below it, at any depth; not ``example.org`` itself
``NAME:8080``       on that port only; ``NAME:*`` on every port. Rules for addresses take ports too
``192.0.2.7``       that address, asked for by number; also private and loopback ones: ``127.0.0.1:8080``
``10.0.0.0/8``      every address of that network; ``[fd00::/8]:443`` when a port follows IPv6
``@pip``            a preset: what the machine that serves the cave uses for it, see ``presets``
==================  ==================================================================================

A name must be listed by name, an address by number. Where a listed name leads must then be public, or listed by
number as well: so no name, however it is resolved, reaches the host or its networks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network

from ghost_mcp.egress.hosts import (
    Address,
    forbidden,
    is_public,
    normal_host,
    read_port,
    unwrapped,
)
from ghost_mcp.egress.presets import PRESETS, preset
from ghost_mcp.errors import InvalidArgument, Unsupported

__all__ = [
    "DEFAULT_PORTS",
    "MAX_RULES",
    "Policy",
    "Rule",
    "Target",
    "Verdict",
    "check_rules",
    "known_rules",
    "read_rules",
]

DEFAULT_PORTS = frozenset({80, 443})
MAX_RULES = 1000
# As wide as the widest private network. What is wider could only mean the internet, and would open the host too.
_WIDEST = {4: 8, 6: 7}
_HINT = (
    "Write example.org, *.example.org, example.org:8080, 10.0.0.0/8 or a preset: "
    + ", ".join(f"@{name}" for name in PRESETS)
    + "."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where a program wants to go: a name in its one form, or an address."""

    host: str
    port: int
    address: Address | None = None

    @classmethod
    def read(cls, host: str, port: int) -> Target:
        """Raises InvalidArgument for a host that is neither name nor address."""
        found = normal_host(host)
        if isinstance(found, str):
            return cls(host=found, port=port)
        return cls(host=str(found), port=port, address=found)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether a connection may be made: by which rule, or why not."""

    allowed: bool
    rule: str
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule. ``ports`` None is every port; a rule has a name or a network, or ``lacks`` says why neither."""

    text: str
    name: str = ""
    below: bool = False
    network: IPv4Network | IPv6Network | None = None
    ports: frozenset[int] | None = DEFAULT_PORTS
    lacks: str = ""

    def names(self, host: str) -> bool:
        if self.below:
            return host.endswith(f".{self.name}")
        return bool(self.name) and host == self.name

    def covers(self, address: Address) -> bool:
        return self.network is not None and address in self.network

    def takes(self, port: int) -> bool:
        return self.ports is None or port in self.ports


def read_rules(texts: Iterable[str]) -> tuple[Rule, ...]:
    """Rules from their texts, presets replaced by what they hold here.

    Raises InvalidArgument, and Unsupported for a preset that this machine knows nothing of.
    """
    return _all(texts, _filled)


def known_rules(texts: Iterable[str]) -> tuple[Rule, ...]:
    """The same for a cave that is there: what this machine knows nothing of leads nowhere, and says so."""
    return _all(texts, _as_far_as_known)


def check_rules(texts: Iterable[str]) -> None:
    """Raises InvalidArgument for what is no rule, on whatever machine."""
    _all(texts, lambda text: [Rule(text=text)])


def _all(texts: Iterable[str], fill: Callable[[str], list[Rule]]) -> tuple[Rule, ...]:
    rules: list[Rule] = []
    for number, text in enumerate(dict.fromkeys(map(_checked, texts))):
        if number == MAX_RULES:
            raise InvalidArgument(f"more than {MAX_RULES} rules for a cave's network")
        rules += fill(text) if text.startswith("@") else [_rule(text, text)]
    return tuple(rules)


def _checked(text: str) -> str:
    if not isinstance(text, str) or not 0 < len(text) <= 300 or text != text.strip():
        raise InvalidArgument(f"not a network rule: {text!r:.100}", hint=_HINT)
    if text.startswith("@") and text[1:] not in PRESETS:
        raise InvalidArgument(f"no such preset: {ascii(text)[1:-1][:60]}", hint=_HINT)
    return text


def _filled(text: str) -> list[Rule]:
    return [_rule(f"{text} ({name})", name) for name in preset(text[1:])]


def _as_far_as_known(text: str) -> list[Rule]:
    try:
        return _filled(text)
    except Unsupported as exc:
        return [Rule(text=text, lacks=exc.message)]


def _rule(text: str, given: str) -> Rule:
    try:
        host, ports = _split(given)
        if host.startswith("*."):
            name = normal_host(host[2:])
            if isinstance(name, str):
                return Rule(text=text, name=name, below=True, ports=ports)
            raise InvalidArgument("an address has nothing below it")
        if "/" in host:
            return Rule(text=text, network=_network(host), ports=ports)
        found = normal_host(host)
        if isinstance(found, str):
            return Rule(text=text, name=found, ports=ports)
        return Rule(text=text, network=ip_network(str(found)), ports=ports)
    except (InvalidArgument, ValueError) as exc:
        raise InvalidArgument(f"not a network rule: {ascii(text)[:100]}", hint=_HINT) from exc


def _network(text: str) -> IPv4Network | IPv6Network:
    network = ip_network(text)
    if network.prefixlen < _WIDEST[network.version]:
        raise InvalidArgument("wider than any private network")
    return network


def _split(text: str) -> tuple[str, frozenset[int] | None]:
    """Host and ports of a rule: ``[IPv6]:PORT``, ``IPv6``, ``HOST:PORT`` or ``HOST``."""
    if text.startswith("["):
        host, closed, rest = text[1:].partition("]")
        if not closed or ":" not in host or (rest and not rest.startswith(":")):
            raise InvalidArgument("brackets hold an IPv6 address")
        port = rest[1:] if rest else None
    elif text.count(":") > 1:
        host, port = text, None
    else:
        host, colon, after = text.partition(":")
        port = after if colon else None
    if port is None:
        return host, DEFAULT_PORTS
    return host, None if port == "*" else frozenset({read_port(port)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What one cave may reach. ``open``: the internet, and what the rules list of other networks."""

    open: bool
    rules: tuple[Rule, ...]

    def target(self, target: Target) -> Verdict:
        """The verdict before a name is looked up: a name that is not listed is not even asked for."""
        if target.address is not None:
            return self.address(target, target.address)
        if self.open:
            return Verdict(allowed=True, rule="open")
        rules = [rule for rule in self.rules if rule.names(target.host)]
        lacking = "".join(f"; {rule.lacks}" for rule in self.rules if rule.lacks)
        return self._by_port(rules, target, f"{target.host} is not on this cave's list{lacking}")

    def address(self, target: Target, address: Address, *, own: bool = False) -> Verdict:
        """The verdict on one address that is about to be connected to. ``own``: it is the host's own."""
        address = unwrapped(address)
        if why := forbidden(address):
            return Verdict(allowed=False, rule="never", why=f"{address} is {why}")
        covering = [rule for rule in self.rules if rule.covers(address)]
        listed = self._by_port(covering, target, f"{address} is not on this cave's list")
        if listed.allowed:
            return listed
        if not own and is_public(address):
            if self.open:
                return Verdict(allowed=True, rule="open")
            return listed if target.address is not None else self.target(target)
        if covering:
            return listed
        what = "an address of this host" if own else "no public address"
        why = f"{address} is {what}, and not on this cave's list by number"
        return Verdict(allowed=False, rule="not public", why=why)

    def _by_port(self, rules: list[Rule], target: Target, why: str) -> Verdict:
        for rule in rules:
            if rule.takes(target.port):
                return Verdict(allowed=True, rule=rule.text)
        if rules:
            why = f"{rules[0].text} does not cover port {target.port}"
            return Verdict(allowed=False, rule=rules[0].text, why=why)
        return Verdict(allowed=False, rule="not listed", why=why)
