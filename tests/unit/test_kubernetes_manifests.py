"""What caves in a cluster are made of, held to the Pod Security Standards without a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from ghost_mcp.backends.kubernetes import manifests
from ghost_mcp.backends.kubernetes.settings import Settings
from ghost_mcp.errors import InvalidArgument, Unsupported
from ghost_mcp.spec import CaveSpec, Limits

CAVES = Path(__file__).parents[2] / "configs/kubernetes/base/caves.yaml"
# https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted
VOLUMES = {
    *("configMap", "csi", "downwardAPI", "emptyDir", "ephemeral"),
    *("persistentVolumeClaim", "projected", "secret"),
}


def restricted(pod: dict[str, Any]) -> list[str]:
    """What of a pod the profile "restricted" forbids."""
    spec, found = pod["spec"], []
    whole = spec["securityContext"]
    found += [key for key in ("hostNetwork", "hostPID", "hostIPC") if spec.get(key)]
    for volume in spec["volumes"]:
        found += [f"volume {kind}" for kind in set(volume) - {"name"} - VOLUMES]
    for one in [*spec.get("initContainers", ()), *spec["containers"]]:
        own = one["securityContext"]
        seccomp = own.get("seccompProfile") or whole.get("seccompProfile") or {}
        wrong = {
            "escalation": own.get("allowPrivilegeEscalation") is not False,
            "capabilities": "ALL" not in own.get("capabilities", {}).get("drop", ()),
            "added": bool(set(own["capabilities"].get("add", ())) - {"NET_BIND_SERVICE"}),
            "root": own.get("runAsNonRoot", whole.get("runAsNonRoot")) is not True
            or 0 in (own.get("runAsUser"), whole.get("runAsUser")),
            "seccomp": seccomp.get("type") not in ("RuntimeDefault", "Localhost"),
            "privileged": own.get("privileged", False),
            "ports": any("hostPort" in port for port in one.get("ports", ())),
        }
        found += [f"{one['name']}: {what}" for what, is_wrong in wrong.items() if is_wrong]
    return found


def made(spec: CaveSpec, **settings: Any) -> dict[str, Any]:
    return manifests.pod(spec, Settings(**settings), name="ghost-x", maker="me")


@pytest.mark.parametrize("ephemeral", [True, False])
def test_a_cave_is_restricted_and_has_no_identity(ephemeral: bool) -> None:
    pod = made(CaveSpec(image="debian:12", ephemeral=ephemeral, timeout_s=60.0))
    assert restricted(pod) == []
    spec = pod["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    assert spec["activeDeadlineSeconds"] > 60
    assert all("ephemeral-storage" in one["resources"]["limits"] for one in spec["containers"])
    assert all(one["securityContext"]["readOnlyRootFilesystem"] for one in spec["containers"])


def test_what_is_not_restricted_is_seen() -> None:
    pod = made(CaveSpec(image="debian:12", ephemeral=True), seccomp={"type": "Unconfined"})
    assert restricted(pod) == ["runtime: seccomp", "cave: seccomp"]


def test_the_operator_places_caves() -> None:
    spec = made(
        CaveSpec(image="debian:12", ephemeral=True),
        runtime_class="gvisor",
        priority_class="low",
        node_selector={"pool": "caves"},
        tolerations=({"key": "caves", "operator": "Exists"},),
        pull_secrets=("registry",),
    )["spec"]
    assert (spec["runtimeClassName"], spec["priorityClassName"]) == ("gvisor", "low")
    assert spec["nodeSelector"] == {"pool": "caves"}
    assert spec["tolerations"] == [{"key": "caves", "operator": "Exists"}]
    assert spec["imagePullSecrets"] == [{"name": "registry"}]


def test_no_value_of_a_variable_or_secret_is_in_the_pod() -> None:
    spec = CaveSpec(image="debian:12", ephemeral=True, env={"A": "canary"}, secrets=("B",))
    assert "canary" not in str(made(spec))


def test_what_a_cluster_cannot_hold_is_refused() -> None:
    with pytest.raises(InvalidArgument):
        manifests.check(CaveSpec(), Settings())
    sized = CaveSpec(image="debian:12", limits=Limits(disk_bytes=1 << 30))
    with pytest.raises(Unsupported):
        manifests.check(sized, Settings())
    manifests.check(sized, Settings(storage_enforced=True))


def test_the_namespace_denies_all_traffic_and_enforces_restricted() -> None:
    things = {thing["kind"]: thing for thing in yaml.safe_load_all(CAVES.read_text("utf-8"))}
    labels = things["Namespace"]["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    policy = things["NetworkPolicy"]["spec"]
    assert policy == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for rule in things["Role"]["rules"]:
        assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
        assert "secrets" not in rule["resources"]


def test_the_hub_is_restricted_as_its_caves_are() -> None:
    things = yaml.safe_load_all((CAVES.parent / "hub.yaml").read_text("utf-8"))
    (deployment,) = (thing for thing in things if thing["kind"] == "Deployment")
    assert restricted(deployment["spec"]["template"]) == []
