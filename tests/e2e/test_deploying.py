"""The chart and the kustomize base: one is the other's rendering, and what they say holds in a cluster."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from ipaddress import ip_network
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import docker
import httpx2
import pytest
import yaml

from ghost_hub.settings import HubSettings
from ghost_hub.tokens import Tokens
from ghost_mcp.backends.docker.engine import open_client
from ghost_mcp.backends.kubernetes.backend import KubernetesBackend
from ghost_mcp.backends.kubernetes.cluster import Cluster
from ghost_mcp.backends.kubernetes.settings import Settings
from ghost_mcp.errors import Conflict
from ghost_mcp.pool import PoolPlan
from ghost_mcp.spec import CaveSpec
from ghost_mcp.testing.basis import connected
from tests import engine_images
from tests.clusters import needed, own_settings
from tests.contract.images import runtime_image

helm = pytest.importorskip("helm_python", reason="not run: no helm for this platform")
ROOT = Path(__file__).parents[2]
CHART, BASE = ROOT / "configs/kubernetes/chart", ROOT / "configs/kubernetes/base"
START_S = 90


def rendered(**values: Any) -> list[dict[str, Any]]:
    with helm.Chart.load(str(CHART)) as chart:
        files = chart.render(values, name="ghost", namespace="x", is_install=True)
    return [thing for text in files.values() for thing in yaml.safe_load_all(text) if thing]


def one(things: list[dict[str, Any]], kind: str, name: str = "ghost-hub") -> dict[str, Any]:
    (found,) = (t for t in things if t["kind"] == kind and t["metadata"]["name"] == name)
    return found


def test_the_base_is_what_the_chart_renders() -> None:
    with helm.Chart.load(str(CHART)) as chart:
        files = chart.render(name="ghost", namespace="ghost-system", is_install=True)
    made = {Path(name).name: text.lstrip("\n") for name, text in files.items()}
    there = {path.name: path.read_text("utf-8") for path in BASE.iterdir()}
    named = yaml.safe_load(there.pop("kustomization.yaml"))["resources"]
    assert there == made, "run: make manifests"
    assert sorted(named) == sorted(made)


def test_the_chart_passes_its_linter() -> None:
    found = helm.lint(str(CHART))
    assert found["errors"] == []
    assert [one for one in found["messages"] if one["severity"] > 1] == []


def test_hub_and_backend_read_their_settings() -> None:
    things = rendered(
        hub={"pool": 5, "host": "127.0.0.1"}, caves={"settings": {"runtime_class": "gvisor"}}
    )
    data = one(things, "ConfigMap")["data"]
    hub = HubSettings.model_validate(yaml.safe_load(data["hub.yaml"]))
    assert (hub.host, hub.backend, hub.pool) == ("0.0.0.0", "kubernetes", 5)
    assert hub.tokens_file is not None
    assert "ghost.example.org" in hub.hosts
    assert hub.preview_domain == "https://ghost.example.org"
    caves = Settings.from_dict(yaml.safe_load(data["caves.yaml"]))
    assert (caves.namespace, caves.runtime_class) == ("ghost", "gvisor")


def test_previews_have_a_wildcard_and_ingress_can_be_left_out() -> None:
    rules = one(rendered(), "Ingress")["spec"]["rules"]
    assert [rule["host"] for rule in rules] == ["ghost.example.org", "*.ghost.example.org"]
    assert "Ingress" not in {thing["kind"] for thing in rendered(ingress={"enabled": False})}


def test_tokens_are_not_where_caves_are() -> None:
    """Who may make pods in a namespace can mount its Secrets."""
    things = rendered()
    assert one(things, "Deployment")["metadata"]["namespace"] == "ghost-system"
    assert {t["metadata"]["namespace"] for t in things if t["kind"] == "Role"} == {"ghost"}


# --- on a cluster ------------------------------------------------------------------------------------


def kubectl(*words: str, given: str | None = None) -> str:
    done = subprocess.run(
        ["kubectl", *words], input=given, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def spaces() -> Iterator[tuple[str, str]]:
    """The names of a namespace for the hub and of one for its caves; both go at the end."""
    needed()
    if not all(parent.stat().st_mode & 0o001 for parent in (ROOT, *ROOT.parents)):
        pytest.skip("not run: only the checkout's owner can read it, and the hub's pod is another")
    mark = secrets.token_hex(3)
    names = f"hub-{mark}", f"caves-{mark}"
    yield names
    kubectl("delete", "namespace", "--ignore-not-found", "--wait=false", *names)


@contextmanager
def images() -> Iterator[tuple[str, str]]:
    """A small image, and the runtime's."""
    engine: docker.APIClient = open_client()
    cache = ROOT / ".cache/kubernetes"
    with (
        contextmanager(engine_images.small)(engine) as small,
        contextmanager(runtime_image)(engine, cache) as brought,
    ):
        yield small, brought
    engine.close()


@asynccontextmanager
async def reachable_api() -> AsyncIterator[tuple[str, int]]:
    """An address by which a pod reaches the API server of a cluster that listens on loopback."""
    config = json.loads(kubectl("config", "view", "--minify", "--raw", "-o", "json"))
    server = urlsplit(config["clusters"][0]["cluster"]["server"])
    engine = open_client()
    bridge = engine.inspect_network("bridge")["IPAM"]["Config"][0]
    # An engine that has just made this network names its subnet only: the first address is the engine's own.
    gateway = bridge.get("Gateway") or str(next(ip_network(bridge["Subnet"]).hosts()))
    engine.close()

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(1 << 16):
            sink.write(data)
            await sink.drain()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(server.hostname, server.port)
        pumps = [asyncio.create_task(pump(reader, back)), asyncio.create_task(pump(there, writer))]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in pumps:
                task.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            for end in (back, writer):
                end.close()
                with suppress(OSError):
                    await end.wait_closed()

    serving: set[asyncio.Task[None]] = set()

    def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.create_task(forward(reader, writer)))

    listener = await asyncio.start_server(serve, gateway, 0)
    try:
        yield gateway, listener.sockets[0].getsockname()[1]
    finally:
        listener.close()
        for task in serving:
            task.cancel()
        if serving:
            await asyncio.wait(serving)


def of_this_machine(deployment: dict[str, Any], image: str, gateway: str, port: int) -> None:
    """Run this checkout with this machine's Python, there being no image of the hub; all else as it is."""
    pod = deployment["spec"]["template"]["spec"]
    (hub,) = pod["containers"]
    hub["image"], hub["imagePullPolicy"] = image, "Never"
    hub["command"] = [sys.executable, "-B", "-m", "ghost_mcp.cli", *hub["command"][1:]]
    hub["env"] += [
        {"name": "KUBERNETES_SERVICE_HOST", "value": "kubernetes.default"},
        {"name": "KUBERNETES_SERVICE_PORT", "value": str(port)},
        {"name": "PATH", "value": "/usr/bin"},
    ]
    pod["hostAliases"] = [{"ip": gateway, "hostnames": ["kubernetes.default"]}]
    for number, path in enumerate(("/usr", "/lib", "/lib64", str(ROOT))):
        name = f"machine-{number}"
        pod["volumes"].append({"name": name, "hostPath": {"path": path}})
        hub["volumeMounts"].append({"name": name, "mountPath": path, "readOnly": True})


def _apply(things: list[dict[str, Any]], token_file: Path, spaces: tuple[str, str]) -> None:
    for thing in things:
        if thing["kind"] == "PodDisruptionBudget":  # the tests' cluster is older than policy/v1
            thing["apiVersion"] = "policy/v1beta1"
    text = yaml.safe_dump_all([thing for thing in things if thing["kind"] == "Namespace"])
    kubectl("apply", "-f", "-", given=text)
    kubectl(
        *("-n", spaces[0], "create", "secret", "generic", "ghost-tokens"),
        f"--from-file=tokens.json={token_file}",
    )
    whole = yaml.safe_dump_all(things)
    kubectl("apply", "--dry-run=server", "-f", "-", given=whole)
    kubectl("apply", "-f", "-", given=whole)


async def _pods(space: str, count: int) -> list[str]:
    """The addresses of the hub's pods, once so many are ready."""
    with anyio.move_on_after(START_S):
        while True:
            found = json.loads(kubectl("-n", space, "get", "pods", "-o", "json"))["items"]
            ready = [
                pod["status"]["podIP"]
                for pod in found
                if any(
                    condition["type"] == "Ready" and condition["status"] == "True"
                    for condition in pod["status"].get("conditions", ())
                )
            ]
            if len(ready) == count:
                return ready
            await anyio.sleep(0.5)
    said = kubectl("-n", space, "logs", "-l", "app.kubernetes.io/name=ghost-hub", "--tail=20")
    raise AssertionError(f"{kubectl('-n', space, 'get', 'pods')}\n{said}")


@pytest.mark.kubernetes
@pytest.mark.timeout(240)
async def test_two_replicas_in_the_cluster(spaces: tuple[str, str], tmp_path: Path) -> None:
    """As deployed: the chart's own identity, rights, settings, probes and Secret; a call through each replica."""
    file = tmp_path / "tokens.json"
    token, _ = Tokens("", file=str(file)).create(owner="alice")
    with images() as (small, brought):
        async with reachable_api() as (gateway, port):
            settings = {"image": small, "runtime_image": brought, "pull_policy": "Never"}
            things = rendered(
                namespace=spaces[0], caves={"namespace": spaces[1], "settings": settings}
            )
            of_this_machine(one(things, "Deployment"), small, gateway, port)
            _apply(things, file, spaces)
            try:
                first, second = await _pods(spaces[0], 2)
                await _used(first, second, token)
                lines = await _audit(spaces[0], 4)
                assert [line["tool"] for line in lines].count("shell_exec") == 2
                assert {line["cave"] for line in lines} == {"alice/kept"}
            finally:
                kubectl("-n", spaces[0], "delete", "deployment", "ghost-hub", "--wait=false")
                kubectl("-n", spaces[0], "delete", "pods", "--all", "--grace-period=0", "--force")
                kubectl("-n", spaces[1], "delete", "pods", "--all", "--grace-period=0", "--force")


async def _audit(space: str, count: int) -> list[dict[str, Any]]:
    """What the hubs have written down, once it is so much: the node takes a line a moment after it was said."""
    with anyio.fail_after(START_S):
        while True:
            said = kubectl("-n", space, "logs", "-l", "app.kubernetes.io/name=ghost-hub")
            lines = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
            if len(lines) >= count:
                return lines
            await anyio.sleep(0.5)


async def _used(first: str, second: str, token: str) -> None:
    headers = {"Authorization": f"Bearer {token}", "Host": "ghost-hub"}

    def client(address: str) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(base_url=f"http://{address}:8000", headers=headers, timeout=60)

    async def run(http: httpx2.AsyncClient, command: str) -> str:
        call = {"tool": "shell_exec", "arguments": {"command": command, "cave": "kept"}}
        answer = await http.post("/mcp/execute", json=call)
        assert answer.status_code == 200, answer.text
        return answer.text

    async with client(first) as one_hub, client(second) as other:
        made = await one_hub.post("/v1/caves", json={"name": "kept"})
        assert made.status_code == 201, made.text
        await run(one_hub, "echo written by one > /workspace/note")
        assert "written by one" in await run(other, "cat /workspace/note")
        assert (await other.delete("/v1/caves/kept")).status_code == 200


# --- rights ------------------------------------------------------------------------------------------


Right = tuple[str, str, str]  # group, resource, verb


def right(method: str, path: str, *, watch: bool = False) -> Right:
    """What a request needs, by https://kubernetes.io/docs/reference/access-authn-authz/authorization/."""
    found = re.fullmatch(r"/apis?(?:/([a-z.0-9]+))?/v\w+/namespaces/[^/]+/([a-z]+)(/.+)?", path)
    assert found is not None, path
    _, name, *below = (found[3] or "").split("/") if found[3] else ("", "")
    resource = "/".join((found[2], *below))
    verbs = {"GET": "get" if name else "list", "POST": "create"}
    return found[1] or "", resource, "watch" if watch else verbs.get(method, method.lower())


def recorded(monkeypatch: pytest.MonkeyPatch) -> set[Right]:
    """The rights that the backend's requests need, from now on."""
    asked: set[Right] = set()
    once, watch, run, text = Cluster._once, Cluster.watch, Cluster.exec, Cluster.text

    def see(method: str, path: str, *, watch: bool = False) -> None:
        if path != "/version":  # everybody may
            asked.add(right(method, path, watch=watch))

    def seen_once(self: Cluster, method: str, path: str, *more: Any) -> Any:
        see(method, path)
        return once(self, method, path, *more)

    def seen_watch(self: Cluster, path: str, *more: Any) -> Any:
        see("GET", path, watch=True)
        return watch(self, path, *more)

    def seen_exec(self: Cluster, path: str, *more: Any) -> Any:
        see("GET", path)
        return run(self, path, *more)

    def seen_text(self: Cluster, path: str, *more: Any) -> Any:
        see("GET", path)
        return text(self, path, *more)

    monkeypatch.setattr(Cluster, "_once", seen_once)
    monkeypatch.setattr(Cluster, "watch", seen_watch)
    monkeypatch.setattr(Cluster, "exec", seen_exec)
    monkeypatch.setattr(Cluster, "text", seen_text)
    return asked


@pytest.mark.kubernetes
async def test_the_role_allows_what_the_backend_asks_for_and_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = recorded(monkeypatch)
    with images() as (small, brought):
        async with KubernetesBackend(own_settings("test", small, brought)) as backend:
            await _a_life_of_each_kind(backend)
    (role,) = (thing for thing in rendered() if thing["kind"] == "Role")
    allowed = {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    # An API server from 1.35 on asks for this one, where older ones asked for get.
    assert allowed - asked == {("", "pods/exec", "create")}
    assert asked <= allowed


async def _a_life_of_each_kind(backend: KubernetesBackend) -> None:
    """Every way there is to ask the cluster for something."""
    short = await backend.create(CaveSpec(name="short", ephemeral=True))
    with pytest.raises(Conflict):
        await backend.create(CaveSpec(name="short", ephemeral=True))
    kept = await backend.create(CaveSpec(name="kept"))
    async with connected(backend, kept.id):
        await backend.usage(kept.id)
    async for _ in backend.logs(kept.id):
        pass
    await backend.list()
    await backend.leftovers(remove=True)
    await backend.get("kept")
    await backend.stop(kept.id)
    await backend.start(kept.id)
    for info in (short, kept):
        await backend.destroy(info.id)
    async with anyio.create_task_group() as tasks:
        pool = backend.pool(PoolPlan(), tasks)
        tasks.start_soon(pool.run)
        await pool.filled.wait()
        claimed = await pool.claim(CaveSpec(ephemeral=True), {})
        assert claimed is not None
        await backend.destroy(claimed[0].id)
        tasks.cancel_scope.cancel()
    await pool.aclose()
