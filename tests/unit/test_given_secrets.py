"""Values that come with a spec: they reach the cave, and nothing that a spec is written to."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import asdict
from pathlib import Path

import pytest

from ghost_mcp import CaveSpec, Ghost, GhostError
from ghost_mcp.secrets import StoredSecrets
from ghost_mcp.secrets.store import SecretStore

VALUE = "v4lue-that-nobody-sees"


def test_a_given_value_is_in_nothing_a_spec_becomes() -> None:
    spec = CaveSpec(secrets=("A",)).with_secret("B", VALUE).with_secret("C").with_secret("A")
    assert spec.secrets == ("A", "B", "C")
    assert dict(spec.given) == {"B": VALUE.encode()}
    shown = [
        repr(spec),
        f"{spec.given!r}{spec.given}",
        json.dumps(spec.as_dict()),
        pickle.dumps(spec).decode("latin-1"),
        repr(asdict(spec)),
        repr(copy.deepcopy(spec).given.values()),
    ]
    for text in shown:
        assert VALUE not in text
    assert CaveSpec.from_dict(spec.as_dict()) == spec
    assert pickle.loads(pickle.dumps(spec)) == spec  # noqa: S301
    assert "given" not in spec.as_dict()
    with pytest.raises(GhostError):
        CaveSpec.from_dict({"given": {"B": VALUE}})
    with pytest.raises(GhostError):
        CaveSpec().with_secret("not a name", VALUE)


async def test_it_reaches_the_cave_again_after_a_stop(state_dir: Path) -> None:
    check = f'[ "$B" = "{VALUE[:5]}""{VALUE[5:]}" ]'
    async with (
        Ghost(backend="local", state_dir=state_dir) as ghost,
        await ghost.create(CaveSpec().with_secret("B", VALUE)) as cave,
    ):
        assert not cave.info.spec.given
        assert (await cave.exec(check)).exit_code == 0
        await cave.stop()
        await cave.start()
        assert (await cave.exec(check)).exit_code == 0


async def test_what_no_variable_can_hold_is_refused(state_dir: Path) -> None:
    async with Ghost(backend="local", state_dir=state_dir) as ghost:
        for value in (b"a\0b", b"x" * 130_000):
            with pytest.raises(GhostError) as caught:
                await ghost.create(CaveSpec().with_secret("B", value))
            assert caught.value.hint
        large = b"\xff" * 120_000
        spec = CaveSpec(ephemeral=True).with_secret("B", large).with_secret("A", b"x\n")
        async with await ghost.create(spec) as cave:
            assert (
                await cave.exec('printf %s "$B" | wc -c; printf %s "$A" | wc -c')
            ).stdout.split() == ["120000", "2"]


async def test_an_owners_value_is_looked_for_in_its_own(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = state_dir / "owners"
    SecretStore(folder / "secrets").set("ada", {"A": b"hers"})
    SecretStore(folder / "secrets").set("", {"A": b"mine"})
    monkeypatch.setenv("B", "a variable")
    source = StoredSecrets(folder, environment=True)
    assert await source.resolve("ada", ["A"]) == {"A": b"hers"}
    assert await source.resolve("", ["A", "B"]) == {"A": b"mine", "B": b"a variable"}
    for owner, names in (("ada", ["B"]), ("bob", ["A"])):
        with pytest.raises(GhostError):
            await source.resolve(owner, names)
    with pytest.raises(GhostError):
        await StoredSecrets(folder, environment=False).resolve("", ["B"])
