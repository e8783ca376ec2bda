"""What the launch files promise about safety, read from the files themselves."""

from __future__ import annotations

import re
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.check import FOLDER, RULES
from cluster.rules import common
from tests.cluster.test_check import Break, broken

__all__ = ["broken"]
RAY_UP = ("gpu.yaml", "gcp.yaml", "onprem.yaml")


def load(name: str) -> Any:
    return yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))


def documents() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / "kuberay.yaml").read_text(encoding="utf-8")))


def lines(name: str) -> Iterator[tuple[int, str]]:
    return iter(enumerate((FOLDER / name).read_text(encoding="utf-8").splitlines(), 1))


@pytest.mark.parametrize("name", RAY_UP)
def test_every_node_starts_with_the_token(name: str) -> None:
    """Would catch a node that lets anyone run code."""
    config = load(name)
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        starts = [c for c in config[key] if "ray start" in c]
        assert len(starts) == 1
        before = starts[0].partition("ray start")[0]
        assert "export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$HOME/.ray/auth_token" in before
    assert config["file_mounts"]["~/.ray/auth_token"] == "cluster/secrets/ray_token"
    assert "chmod 600 ~/.ray/auth_token" in (FOLDER / "node.sh").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", RAY_UP)
def test_dashboard_and_mlflow_listen_on_this_machine(name: str) -> None:
    """Would catch a dashboard that the security group alone protects."""
    commands = " ".join(load(name)["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in commands
    assert "MGDM_MLFLOW_HOST" not in commands
    assert "host=${MGDM_MLFLOW_HOST:-127.0.0.1}" in (FOLDER / "mlflow.sh").read_text("utf-8")


def test_security_group_opens_ssh_only() -> None:
    """Would catch a port that someone opens for the dashboard; asks Ray what it really sets."""
    pytest.importorskip("boto3")
    from ray.autoscaler._private.aws.config import _create_default_inbound_rules

    extra = load("gpu.yaml")["provider"]["security_group"].get("IpPermissions", [])
    rules = _create_default_inbound_rules(["sg-1"], extra)
    outside = [rule for rule in rules if "UserIdGroupPairs" not in rule]
    assert {(rule["FromPort"], rule["ToPort"]) for rule in outside} == {(22, 22)}


def test_gpus_come_and_go() -> None:
    """Would catch nodes that cost while nothing runs."""
    for name in ("gpu.yaml", "gcp.yaml"):
        config = load(name)
        assert config["idle_timeout_minutes"] <= 15
        assert config["provider"]["cache_stopped_nodes"] is False
        assert config["available_node_types"]["gpu"]["min_workers"] == 0
        assert config["available_node_types"]["head"]["resources"] == {"CPU": 0}
    (worker,) = documents()[0]["spec"]["workerGroupSpecs"]
    assert worker["minReplicas"] == worker["replicas"] == 0


def test_compose_publishes_here_only() -> None:
    """Would catch a database or object store that the network can reach."""
    services = load("docker-compose.yaml")["services"]
    published = {name: s["ports"] for name, s in services.items() if "ports" in s}
    assert set(published) == {"head", "mlflow"}
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)


def test_compose_starts_ray_with_the_token() -> None:
    """Would catch a worker without the token."""
    services = load("docker-compose.yaml")["services"]
    rays = {n: s for n, s in services.items() if "start" in " ".join(s.get("command", []))}
    assert set(rays) == {"head", "worker", "worker-gpu"}
    for service in rays.values():
        assert service["environment"]["RAY_AUTH_MODE"] == "token"
        assert service["environment"]["RAY_AUTH_TOKEN_PATH"] == "/run/secrets/ray_token"
        assert "ray_token" in service["secrets"]
        assert service["cap_drop"] == ["ALL"]


def test_kubernetes_opens_nothing() -> None:
    """Would catch a load balancer in front of a cluster that runs any code."""
    kinds = [d["kind"] for d in documents()]
    assert kinds == ["RayCluster", "RayJob", "PersistentVolumeClaim", "NetworkPolicy"]
    spec = documents()[0]["spec"]
    assert spec["authOptions"]["mode"] == "token"
    assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        assert group["template"]["spec"]["securityContext"]["runAsNonRoot"] is True


def test_dockerfile_is_not_root() -> None:
    """Would catch an image whose jobs may do anything in their container."""
    users = [line.split()[1] for _, line in lines("Dockerfile") if line.startswith("USER ")]
    assert users == ["${UID}"]


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("gpu.yaml", "--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0", r"^line \d+: "),
        ("gpu.yaml", "--dashboard-host=127.0.0.1 ", "", "head_start_ray_commands: .*=127.0.0.1"),
        ("gpu.yaml", "export RAY_AUTH_MODE=token ", "export ", "`export RAY_AUTH_MODE=token`"),
        ("onprem.yaml", "RAY_AUTH_TOKEN_PATH=$HOME", "TOKEN=$HOME", "`export RAY_AUTH_TOKEN_PATH="),
        ("gpu.yaml", "RAY_USAGE_STATS_ENABLED=0 ", "", "RAY_USAGE_STATS_ENABLED=0"),
        ("gcp.yaml", "  ~/.ray/auth_token: cluster/secrets/ray_token\n", "", "file_mounts"),
        ("gcp.yaml", "__pycache__, secrets", "__pycache__", "rsync_exclude"),
        ("gpu.yaml", "    GroupName: mgdm-ray\n",
         "    GroupName: mgdm-ray\n    IpPermissions: [{FromPort: 8265, ToPort: 8265}]\n",
         r"security_group: .*\b8265\b"),
        ("onprem.yaml", "head_ip: EDIT", "head_ip: 8.8.8.8", r"provider: 8\.8\.8\.8"),
        ("slurm.sh", " RAY_AUTH_MODE=token\n", "\n", "`export RAY_AUTH_MODE=token`"),
        ("slurm.sh", "--dashboard-host=127.0.0.1", "--dashboard-host=$address", "127.0.0.1"),
        ("kuberay.yaml", "mode: token", "mode: disabled", r"authOptions\.mode: .*token"),
        ("kuberay.yaml", "serviceType: ClusterIP", "serviceType: LoadBalancer",
         "serviceType ClusterIP"),
        ("kuberay.yaml", "runAsNonRoot: true", "runAsNonRoot: false", "runAsNonRoot"),
        ("kuberay.yaml", "containerPort: 8265", "containerPort: 8265, hostPort: 8265", "hostPort"),
        ("kuberay.yaml", "  podSelector:\n    matchLabels: {ray.io/cluster: mgdm}",
         "  podSelector:\n    matchLabels: {ray.io/cluster: another}",
         "RayCluster mgdm: .*NetworkPolicy"),
        ("docker-compose.yaml", "127.0.0.1:8265:8265", "8265:8265",
         "services.head: ports: 8265:8265"),
        ("docker-compose.yaml", "    RAY_AUTH_MODE: token\n", "", "RAY_AUTH_MODE"),
        ("docker-compose.yaml", "[ray_token, aws", "[aws", "RAY_AUTH_TOKEN_PATH"),
        ("docker-compose.yaml", "POSTGRES_DB: mlflow", "POSTGRES_PASSWORD: hunter2",
         r"line \d+: PASSWORD"),
        ("docker-compose.yaml", "file: secrets/ray_token", "file: /tmp/ray_token",
         "secrets.ray_token: "),
        ("docker-compose.yaml", "    restart: unless", "    privileged: true\n    restart: unless",
         "privileged"),
        ("Dockerfile", "USER ${UID}", "USER root", "USER: "),
        ("mlflow.sh", "port=${MGDM_MLFLOW_PORT:-5000}", "port=5000\npassword=hunter2",
         "line 18: password"),
    ],
)  # fmt: skip
def test_a_hole_is_refused(broken: Break, name: str, old: str, new: str, said: str) -> None:
    """Would catch a rule about safety that no longer looks; ``said``: place and value."""
    found = broken(name, old, new)
    assert any(re.search(said, problem) for problem in found), found


@pytest.mark.parametrize("kind", ["Secret", "Ingress", "Service"])
def test_more_kubernetes_documents_are_looked_at(tmp_path: Path, kind: str) -> None:
    """Would catch a way in, or a secret, appended to kuberay.yaml."""
    from cluster.check import problems

    more = {
        "Secret": {"apiVersion": "v1", "stringData": {"a": "b"}},
        "Ingress": {"apiVersion": "networking.k8s.io/v1", "spec": {"ingressClassName": "x"}},
        "Service": {"apiVersion": "v1", "spec": {"type": "NodePort", "ports": [{"port": 1}]}},
    }[kind]
    path = tmp_path / "kuberay.yaml"
    text = (FOLDER / "kuberay.yaml").read_text(encoding="utf-8")
    added = yaml.safe_dump({"kind": kind, "metadata": {"name": "x"}, **more})
    path.write_text(f"{text}---\n{added}", encoding="utf-8")
    assert any(p.startswith(f"{kind} 5: ") for p in problems(path)), problems(path)


@pytest.mark.parametrize(
    "line",
    [
        "password: hunter2",
        'AWS_SECRET_ACCESS_KEY="abc/def"',
        "export MLFLOW_TRACKING_PASSWORD=hunter2",
        "token: 0123456789abcdef0123456789abcdef",
        "key = AKIA" + "A" * 16,
        "-----BEGIN OPENSSH PRIVATE KEY-----",
    ],
)
def test_secrets_in_a_file_are_seen(tmp_path: Path, line: str) -> None:
    """Would catch a secret that someone writes into a launch file."""
    path = tmp_path / "gpu.yaml"
    path.write_text(f"# comment\n{line}\n", encoding="utf-8")
    assert any(p.startswith("line 2: ") for p in common.check_contents(path))


def test_secrets_are_made_private_and_kept(tmp_path: Path) -> None:
    """Would catch secrets that others can read, and a second run that locks a cluster out."""
    script = tmp_path / "cluster" / "secrets.sh"
    script.parent.mkdir()
    script.write_bytes((FOLDER / "secrets.sh").read_bytes())
    subprocess.run(["bash", str(script)], check=True, capture_output=True)
    made = {p.name: p for p in (script.parent / "secrets").iterdir()}
    wanted = load("docker-compose.yaml")["secrets"].values()
    assert {Path(s["file"]).name for s in wanted} <= set(made)
    for path in made.values():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE((script.parent / "secrets").stat().st_mode) == 0o700
    before = {name: path.read_text() for name, path in made.items()}
    assert len({before["ray_token"], before["minio_password"], before["postgres_password"]}) == 3
    assert len(before["ray_token"]) == 64
    subprocess.run(["bash", str(script)], check=True, capture_output=True)
    assert {name: path.read_text() for name, path in made.items()} == before


def test_secrets_are_never_committed() -> None:
    """Would catch a change to .gitignore, or to an image's contents, that takes secrets in."""
    for name in ("cluster/secrets/ray_token", "cluster/.env"):
        run = subprocess.run(["git", "check-ignore", "-q", name], cwd=common.ROOT, check=False)
        assert run.returncode == 0, name
    ignored = (FOLDER / "Dockerfile.dockerignore").read_text(encoding="utf-8").split()
    assert {"**/secrets", "**/.env", ".git"} <= set(ignored)


def test_no_file_names_all_addresses() -> None:
    """Would catch 0.0.0.0 anywhere in the launch files, comments included."""
    for name in RULES:
        assert [n for n, line in lines(name) if "0.0.0.0" in line] == [], name
