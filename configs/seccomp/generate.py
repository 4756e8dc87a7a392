# Turns policy.toml into the filters that the package ships. Run by hand after a change of the policy;
# tests/unit/test_seccomp.py compiles it again and compares.
"""``generate.py [FOLDER]``: write ``<architecture>.bpf`` for each architecture, and ``seccomp.json`` in the form that
container engines take, into FOLDER (without one: to where the package has them).

Needs libseccomp and its Python binding: Debian's python3-seccomp, or pyseccomp from PyPI.
"""

from __future__ import annotations

import errno
import json
import struct
import sys
import tempfile
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

try:
    import seccomp
except ImportError:
    import pyseccomp as seccomp

HERE = Path(__file__).resolve().parent
BACKENDS = HERE.parent.parent / "ghost_mcp" / "backends"
FILTERS, PROFILE = BACKENDS / "local" / "filters", BACKENDS / "docker"

X32_BIT = 0x40000000
WIDEST_GAP = 64
# Classic BPF, see linux/filter.h: load a word of seccomp_data, jump if greater or equal, return.
LOAD, JUMP_GE, RETURN = 0x20, 0x35, 0x06
ACT_ERRNO = 0x00050000


def main() -> None:
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else FILTERS
    policy = tomllib.loads((HERE / "policy.toml").read_text(encoding="utf-8"))
    for machine in policy["architectures"]:
        (target / f"{machine}.bpf").write_bytes(compile_filter(policy, machine))
    profile = target if len(sys.argv) > 1 else PROFILE
    text = json.dumps(engine_profile(policy), indent=1) + "\n"
    (profile / "seccomp.json").write_text(text, encoding="utf-8")


def compile_filter(policy: dict[str, Any], machine: str) -> bytes:
    """The policy as a program of 8-byte instructions for one architecture."""
    rules = seccomp.SyscallFilter(seccomp.ALLOW)
    wanted = getattr(seccomp.Arch, machine.upper())
    if not rules.exist_arch(wanted):
        rules.add_arch(wanted)
        rules.remove_arch(seccomp.Arch.NATIVE)
    # A binary of another ABI (i386, x32, 32-bit ARM) numbers its calls differently: it ends with SIGSYS.
    rules.set_attr(seccomp.Attr.ACT_BADARCH, seccomp.KILL_PROCESS)
    rules.set_attr(seccomp.Attr.CTL_OPTIMIZE, 2)  # a binary tree, not a chain
    for rule in policy["deny"]:
        if machine in rule.get("only_on", [machine]):
            for name in rule["syscalls"]:
                rules.add_rule(refuse(rule["errno"]), name)
    for rule in policy["argument"]:
        for action, argument in comparisons(rule):
            rules.add_rule(action, rule["syscall"], argument)
    return unknown_calls(policy["first_unknown"]) + exported(rules)


def comparisons(rule: dict[str, Any]) -> list[tuple[int, Any]]:
    """One argument rule as (action, comparison) pairs; each alone refuses."""
    action, index = refuse(rule["errno"]), rule["index"]
    found = [
        (action, seccomp.Arg(index, seccomp.MASKED_EQ, bit, bit)) for bit in rule.get("has_bit", [])
    ]
    found += [
        (action, seccomp.Arg(index, seccomp.MASKED_EQ, 0xFFFFFFFF, value))
        for value in rule.get("low32", [])
    ]
    only = sorted(rule.get("only", []))
    if only:
        found.append((action, seccomp.Arg(index, seccomp.LT, only[0])))
        for low, high in pairwise(only):
            if high - low > WIDEST_GAP:
                raise SystemExit(f"{rule['group']}: too many values between {low} and {high}")
            found += [
                (action, seccomp.Arg(index, seccomp.EQ, value)) for value in range(low + 1, high)
            ]
        found.append((action, seccomp.Arg(index, seccomp.GT, only[-1])))
    return found


def engine_profile(policy: dict[str, Any]) -> dict[str, Any]:
    """The policy as an engine's profile. It has no word for calls by number: unknown ones are not refused.

    An engine adds each entry as a rule of its own. An architecture that is not named (i386, x32) is killed.
    """
    entries = [
        {
            "names": rule["syscalls"],
            "action": "SCMP_ACT_ERRNO",
            "errnoRet": getattr(errno, rule["errno"]),
        }
        for rule in policy["deny"]
    ]
    for rule in policy["argument"]:
        entries += [
            {
                "names": [rule["syscall"]],
                "action": "SCMP_ACT_ERRNO",
                "errnoRet": getattr(errno, rule["errno"]),
                "args": [{"index": rule["index"], "op": f"SCMP_CMP_{op}", **values}],
            }
            for op, values in engine_comparisons(rule)
        ]
    return {
        "defaultAction": "SCMP_ACT_ALLOW",
        "archMap": [
            {"architecture": f"SCMP_ARCH_{machine.upper()}", "subArchitectures": []}
            for machine in policy["architectures"]
        ],
        "syscalls": entries,
    }


def engine_comparisons(rule: dict[str, Any]) -> list[tuple[str, dict[str, int]]]:
    """As comparisons(). For MASKED_EQ ``value`` is the mask."""
    masked = [(bit, bit) for bit in rule.get("has_bit", [])]
    masked += [(0xFFFFFFFF, value) for value in rule.get("low32", [])]
    found = [("MASKED_EQ", {"value": mask, "valueTwo": value}) for mask, value in masked]
    only = sorted(rule.get("only", []))
    if only:
        between = [value for low, high in pairwise(only) for value in range(low + 1, high)]
        found += [("LT", {"value": only[0]}), ("GT", {"value": only[-1]})]
        found += [("EQ", {"value": value}) for value in between]
    return found


def refuse(name: str) -> int:
    number: int = seccomp.ERRNO(getattr(errno, name))
    return number


def unknown_calls(first: int) -> bytes:
    """Four instructions in front: libseccomp cannot say "every number from here on".

    Numbers with the x32 bit (and -1, a tracer's "skip") go on to libseccomp's own checks.
    """
    return b"".join(
        struct.pack("=HBBI", *instruction)
        for instruction in (
            (LOAD, 0, 0, 0),
            (JUMP_GE, 0, 2, first),
            (JUMP_GE, 1, 0, X32_BIT),
            (RETURN, 0, 0, ACT_ERRNO | errno.ENOSYS),
        )
    )


def exported(rules: Any) -> bytes:
    with tempfile.TemporaryFile() as file:
        rules.export_bpf(file)
        file.seek(0)
        return file.read()


if __name__ == "__main__":
    main()
