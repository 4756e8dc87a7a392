"""Caves in a real cluster keep the contract."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from ghost_mcp.backends.base import Backend
from ghost_mcp.backends.kubernetes import manifests
from ghost_mcp.backends.kubernetes.backend import KubernetesBackend
from ghost_mcp.backends.kubernetes.cluster import Cluster
from ghost_mcp.backends.kubernetes.settings import Settings
from ghost_mcp.cave import Cave
from ghost_mcp.ghost import Ghost
from ghost_mcp.lifecycle import State
from ghost_mcp.pool import PoolPlan
from ghost_mcp.spec import CaveInfo, CaveSpec
from ghost_mcp.testing import BackendContract
from ghost_mcp.testing.basis import connected
from ghost_mcp.warden import runtime
from tests.clusters import NAMESPACE, needed

# Empties the folders of a cave, in the warden's own Python: the images here have no rm.
EMPTY = """
import os, shutil
for folder in ("/workspace", "/home/cave", "/tmp"):
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            os.unlink(entry.path)
"""


@pytest.fixture(scope="session")
def late_class() -> Iterator[str]:
    """A storage class that provides when a pod is placed: its pods do not wait for a scheduler's second try."""
    needed()
    path, name = "/apis/storage.k8s.io/v1/storageclasses", f"ghost-test-{secrets.token_hex(4)}"

    async def make() -> None:
        cluster = await Cluster.open(Settings())
        try:
            usual = (await cluster.pages(path, {}))[0]
            late = {key: usual.get(key) for key in ("provisioner", "parameters", "reclaimPolicy")}
            late |= {"metadata": {"name": name}, "volumeBindingMode": "WaitForFirstConsumer"}
            await cluster.ask("POST", path, late)
        finally:
            await cluster.aclose()

    async def remove() -> None:
        cluster = await Cluster.open(Settings())
        await cluster.ask("DELETE", f"{path}/{name}")
        await cluster.aclose()

    asyncio.run(make())
    yield name
    asyncio.run(remove())


@pytest.fixture(scope="session")
def given(brought: str, late_class: str) -> dict[str, Any]:
    """The settings of these tests' backends, of an instance that nobody else uses."""
    return {
        "storage_class": late_class,
        "namespace": NAMESPACE,
        "instance": f"test-{secrets.token_hex(4)}",
        "runtime_image": brought,
        "pull_policy": "Never",
    }


@pytest.fixture(scope="session")
def shared(given: dict[str, Any], small_image: str) -> Iterator[str]:
    """A cave for all tests that only work in one: a pod takes seconds."""
    spec = CaveSpec(name=f"shared-{secrets.token_hex(4)}", image=small_image)

    async def act(*verbs: str) -> None:
        async with KubernetesBackend(Settings.from_dict(given)) as backend:
            for verb in verbs:
                await getattr(backend, verb)(spec if verb == "create" else spec.id)

    asyncio.run(act("create"))
    yield spec.id
    asyncio.run(act("destroy"))


@pytest.mark.kubernetes
class TestKubernetes(BackendContract):
    # The images here have no Python; the warden's own will do.
    python = tuple(runtime.argv()[:-1])
    can_pause = False
    slowness = 3.0  # an exec takes 0.1 s here, and more on a busy machine
    measures = frozenset()  # this cluster has no metrics
    refused = (
        {"image": "no-such-image:ever"},
        {"image": "Not A Reference"},
        {"workspace": "/tmp"},
        {"mounts": {"/data": "/tmp"}},
        {"env": {"KEY": "x"}, "secrets": ["KEY"]},
    )

    @pytest.fixture(autouse=True)
    def _cluster(self, small_image: str, given: dict[str, Any], shared: str) -> None:
        self._image, self.given, self._shared = small_image, given, shared

    def make(self) -> Backend:
        return KubernetesBackend(Settings.from_dict(self.given))

    def settings(self) -> dict[str, Any]:
        return {"image": self._image}

    @asynccontextmanager
    async def cave(self, **changes: Any) -> AsyncIterator[Cave]:
        """One of its own only for who wants it to be different."""
        if changes:
            async with super().cave(**changes) as cave:
                yield cave
            return
        async with self.view(self._shared) as cave:
            await self.script(cave, EMPTY)
            yield cave

    def elsewhere(self) -> str:
        return (
            "from ghost_mcp.backends.kubernetes.backend import KubernetesBackend\n"
            "from ghost_mcp.backends.kubernetes.settings import Settings\n"
            f"def make(): return KubernetesBackend(Settings.from_dict({self.given!r}))\n"
        )

    async def test_a_life_takes_six_requests(self) -> None:
        async with KubernetesBackend(Settings.from_dict(self.given)) as backend:
            for spec in (self.spec(ephemeral=True), self.spec(ephemeral=True)):
                before = backend.cluster.calls
                info = await backend.create(spec)
                async with connected(backend, info.id):
                    pass
                await backend.destroy(info.id)
                spent = backend.cluster.calls - before
            assert spent <= 6  # the second one finds the watch running

    async def test_two_hubs_that_start_a_cave_at_once_make_one_pod(self) -> None:
        async with self.make() as one, self.make() as other:
            info = await one.create(self.spec())
            try:
                for pause_s in (0.0, 0.3):  # the second then finds a pod that does not run yet
                    await one.stop(info.id)

                    async def later(pause_s: float = pause_s) -> CaveInfo:
                        await asyncio.sleep(pause_s)
                        return await other.start(info.id)

                    started = await asyncio.gather(one.start(info.id), later())
                    assert [now.state for now in started] == [State.RUNNING] * 2
                    pods = await self.found("pods", info.id)
                    assert len([p for p in pods if not p["metadata"].get("deletionTimestamp")]) == 1
            finally:
                await one.destroy(info.id)

    async def test_two_hubs_that_claim_at_once_never_get_the_same_pod(self) -> None:
        plan = PoolPlan(template=self.passing(), size=2)
        async with (
            Ghost(backend=self.make(), pools=[plan]) as one,
            Ghost(backend=self.make(), pools=[plan]) as other,
        ):
            await one.warm()
            await other.warm()
            pools = [ghost._pools[ghost.default_backend][0] for ghost in (one, other, one, other)]
            tried = await asyncio.gather(*(pool.claim(self.passing(), {}) for pool in pools))
            claimed = [found[0].id for found in tried if found is not None]
            assert len(claimed) >= 2
            pods = [await self.found("pods", cave_id) for cave_id in claimed]
            assert [len(found) for found in pods] == [1] * len(claimed)
            assert len({found[0]["metadata"]["uid"] for found in pods}) == len(claimed)

    async def test_what_a_killed_hub_has_half_made_is_swept(self) -> None:
        async with KubernetesBackend(Settings.from_dict(self.given)) as backend:
            kept = await backend.create(self.spec())
            try:
                begun = self.spec(image=self._image)
                path, config = f"/api/v1/namespaces/{NAMESPACE}", backend.config
                made = manifests.pod(begun, config, name=f"ghost-{begun.id}", maker="x")
                volume = manifests.volume(begun, config)
                await backend.cluster.ask("POST", f"{path}/persistentvolumeclaims", volume)
                await backend.cluster.ask("POST", f"{path}/pods", made)
                assert await backend.leftovers(remove=False) == []  # it may still be being made
                backend.making_s = 0.0
                name = f"ghost-{begun.id}"
                both = [f"pods/{name}", f"persistentvolumeclaims/{name}"]
                assert await backend.leftovers(remove=False) == both
                assert await backend.leftovers(remove=True) == both
                await self.nothing_left(begun.id)
                assert await backend.leftovers(remove=False) == []
                assert (await backend.get(kept.id)).state is State.RUNNING
            finally:
                await backend.destroy(kept.id)

    async def engine_shows(self, info: CaveInfo) -> str:
        return json.dumps([await self.found(kind, info.id) for kind in KINDS])

    async def leftovers(self, cave_id: str) -> list[str]:
        found = [one for kind in KINDS for one in await self.found(kind, cave_id)]
        # A claim goes once the kubelet has let go of its folder: that it is going is all that can be asked.
        return [
            one["metadata"]["name"] for one in found if not one["metadata"].get("deletionTimestamp")
        ]

    async def found(self, kind: str, cave_id: str) -> list[dict[str, Any]]:
        cluster = await Cluster.open(Settings())
        try:
            path = f"/api/v1/namespaces/{NAMESPACE}/{kind}"
            return await cluster.pages(path, {"labelSelector": f"ghost-mcp.dev/id={cave_id}"})
        finally:
            await cluster.aclose()


KINDS = ("pods", "configmaps", "persistentvolumeclaims", "secrets")
