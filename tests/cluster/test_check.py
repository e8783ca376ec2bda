"""Every rule of cluster/check.py refuses a file that breaks it, and says where."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import moto
import pytest

from cluster.check import FOLDER, RULES, problems
from cluster.rules import common, ray_up
from cluster.rules import ready as ready_check

Break = Callable[..., list[str]]


@pytest.fixture
def broken(tmp_path: Path) -> Break:
    """Problems of a launch file after replacing every ``old`` by ``new`` in it."""

    def change(name: str, old: str, new: str) -> list[str]:
        text = (FOLDER / name).read_text(encoding="utf-8")
        assert old in text, f"{name} no longer holds {old!r}"
        path = tmp_path / name
        path.write_text(text.replace(old, new), encoding="utf-8")
        return problems(path)

    return change


def test_all_files_pass() -> None:
    """Would catch a launch file that breaks a rule, and a command that is silent about files."""
    run = subprocess.run(
        [sys.executable, str(FOLDER / "check.py")], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    shown = [line.split(":")[0] for line in run.stdout.splitlines()]
    assert [Path(line).name for line in shown] == list(RULES)
    assert all(line.startswith("ok ") for line in shown)


def test_a_wrong_file_ends_with_exit_code_1(tmp_path: Path) -> None:
    """Would catch a check that finds what is wrong, and lets `make check` pass."""
    path = tmp_path / "onprem.yaml"
    path.write_text("cluster_name: [1]\n", encoding="utf-8")
    run = subprocess.run(
        [sys.executable, str(FOLDER / "check.py"), str(path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 1
    assert "onprem.yaml: " in run.stdout


def ready(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(FOLDER / "check.py"), "--ready", *words],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("gpu.yaml", []),
        ("gcp.yaml", ["project_id: EDIT", "images/family/EDIT", "email: EDIT"]),
        ("onprem.yaml", ["head_ip: EDIT", "worker_ips: [EDIT, EDIT]", "ssh_user: EDIT"]),
        ("kuberay.yaml", ["image: REGISTRY/mgdm-ray"] * 3 + ["--storage s3://BUCKET/mgdm"]),
        ("docker-compose.yaml", []),
        ("slurm.sh", []),
    ],
)
def test_what_is_left_to_edit_is_named(name: str, left: list[str]) -> None:
    """Would catch a placeholder that only the cloud refuses, and an exit code of 0 for it."""
    text = (FOLDER / name).read_text(encoding="utf-8").splitlines()
    found = []
    for problem in ready_check.check(FOLDER / name):
        if problem.startswith("line "):
            number = int(problem.split(":")[0].removeprefix("line "))
            found.append(text[number - 1].strip())
    assert len(found) == len(left)
    assert all(expected in line for expected, line in zip(left, found, strict=True))
    run = ready(str(FOLDER / name))
    missing = [line for line in run.stdout.splitlines() if ": line " not in line]
    assert run.returncode == (2 if left or not missing[0].startswith("ok ") else 0)
    assert run.stdout.count(": line ") == len(left)


def test_a_file_in_use_needs_its_token_and_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch `ray up` that fails after it has rented a head."""
    path = tmp_path / "onprem.yaml"
    text = (FOLDER / "onprem.yaml").read_text(encoding="utf-8").replace("EDIT", "node")
    path.write_text(text.replace("~/.ssh/mgdm", f"{tmp_path}/key"), encoding="utf-8")
    monkeypatch.setattr(common, "ROOT", tmp_path)
    token, key = ready_check.check(path)
    assert re.match(r"cluster/secrets/ray_token: .*\bcluster/secrets\.sh$", token)
    assert f"{tmp_path}/key" in key
    (tmp_path / "cluster" / "secrets").mkdir(parents=True)
    (tmp_path / "cluster" / "secrets" / "ray_token").write_text("t")
    (tmp_path / "key").write_text("k")
    assert list(ready_check.check(path)) == []


def test_ready_is_for_named_and_correct_files(tmp_path: Path) -> None:
    """Would catch a wrong file that is called unfinished only."""
    assert ready().returncode == 2
    path = tmp_path / "gcp.yaml"
    path.write_text((FOLDER / "gcp.yaml").read_text("utf-8").replace("max_workers", "max_wrokers"))
    run = ready(str(path), str(FOLDER / "gcp.yaml"))
    assert run.returncode == 1
    assert "max_wrokers" in run.stdout
    assert "project_id: EDIT" in run.stdout


def test_every_launch_file_has_rules() -> None:
    """Would catch a new launch file that nothing checks."""
    there = {
        p.name
        for p in FOLDER.iterdir()
        if p.suffix in (".yaml", ".sh", ".json") or p.name.startswith("Dockerfile")
    }
    without = {"instances.yaml", "kuberay.schema.yaml", "Dockerfile.dockerignore"}
    assert there - without == set(RULES)


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        # Ray's own validator
        ("gpu.yaml", "max_workers: 4\nupscaling", "max_wrokers: 4\nupscaling", "max_wrokers"),
        ("gpu.yaml", "max_workers: 4\nupscaling", "max_workers: four\nupscaling", "four"),
        ("gpu.yaml", "head_node_type: head", "head_node_type: haed", "head_node_type"),
        ("onprem.yaml", "  worker_ips", "  worker_addresses", "^Ray: .*`worker_ips`"),
        # machine types
        ("gpu.yaml", "InstanceType: g6.2xlarge", "InstanceType: g6.2xlage",
         "gpu.node_config.InstanceType: .*'g6.2xlage'"),
        ("gcp.yaml", "machineType: g2-standard-8", "machineType: g2.standard-8",
         "machineType: .*'g2.stan"),
        ("gpu.yaml", "{CPU: 8, GPU: 1}", "{CPU: 8, GPU: 4}", r"gpu.resources.GPU: 4\b.*\b1$"),
        ("gpu.yaml", "{CPU: 8, GPU: 1}", "{CPU: 16, GPU: 1}", r"resources.CPU: 16\b.*\b8$"),
        ("gcp.yaml", "{CPU: 8, GPU: 1}", "{CPU: 8}", r"resources.GPU: 0\b.*\b1$"),
        ("gpu.yaml", "m7i.xlarge", "g6.xlarge", r"\.head: .*g6\.xlarge"),
        ("gcp.yaml", "idle_timeout_minutes: 10\n", "", "idle_timeout_minutes: "),
        # Kubernetes and KubeRay
        ("kuberay.yaml", "rayVersion", "rayversion", "rayversion"),
        ("kuberay.yaml", "minReplicas: 0", "minReplicas: -1", "minReplicas"),
        ("kuberay.yaml", "replicas: 0", "replicas: 9", r"replicas: 9\b.*\b4\b"),
        ("kuberay.yaml", 'num-cpus: "0"', "num-cpus: 0", "num-cpus"),
        ("kuberay.yaml", "containerPort: 6379", "containerPorts: 6379", "containerPort"),
        ("kuberay.yaml", "emptyDir: {medium", "emptyDir: {media", "media"),
        ("kuberay.yaml", "ray.io/cluster: mgdm}\n  entry", "ray.io/cluster: x}\n  entry", "'x'"),
        ("kuberay.yaml", "accessModes: [ReadWriteOnce]", "accessMode: [ReadWriteOnce]", "accessM"),
        ("kuberay.yaml", "              limits: {memory: 12Gi}\n", "", "container ray-head: "),
        # Compose
        ("docker-compose.yaml", "    ports: [", "    portz: [", "portz"),
        ("docker-compose.yaml", "condition: service_healthy", "condition: healthy", "healthy"),
        ("docker-compose.yaml", "  postgres: {}\n", "", "services.postgres: .*'postgres'"),
        ("docker-compose.yaml", "  cluster: {}\n", "  c: {}\n", "cluster"),
        ("docker-compose.yaml", "  minio_password: {file", "  minio: {file", "minio_password"),
        ("docker-compose.yaml", "      minio: {cond", "      mini: {cond", "mini"),
        ("docker-compose.yaml", ":?run cluster/secrets.sh first}", "}",
         r"^line \d+: \$\{MGDM_UID\}"),
        # other linters
        ("slurm.sh", 'cd "$SLURM_SUBMIT_DIR"', "cd $SLURM_SUBMIT_DIR", "SC2086"),
        ("node.sh", "set -euo pipefail", "set -e", "set -euo pipefail"),
        ("Dockerfile", "--no-install-recommends ", "", "DL3015"),
        ("Dockerfile", "WORKDIR /opt/mgdm-ray", "WORKDIR opt/mgdm-ray", "DL3000"),
        ("Dockerfile", " -c constraints.txt", "", "`-c constraints.txt`"),
        # rights on AWS
        ("iam-head.json", '"ec2:TerminateInstances"', '"ec2:*"', r"'ec2:\*'"),
        ("iam-head.json", "role/mgdm-worker", "role/*", r"PassRole\b.*\bmgdm-worker\b"),
        ("iam-worker.json", '"arn:aws:s3:::BUCKET/*"', '"*"', r"'\*': "),
        ("iam-worker.json", '"arn:aws:s3:::BUCKET/*"', '"arn:aws:s3:::*"', r"'arn:aws:s3:::\*': "),
        ("iam-worker.json", '"Resource"', '"NotResource"', "NotResource"),
        ("iam-worker.json", "2012-10-17", "2008-10-17", "Version"),
        ("iam-head.json", '"Version"', "Version", r"JSON: .*\bline \d+ column "),
        # what a launch file says of itself
        ("gpu.yaml", "# Cost: ", "# ", "'Cost'"),
        ("slurm.sh", "# Stop: ", "# End: ", "'Stop'"),
        ("onprem.yaml", "python -m mgdm_ray.study", "python -m study", "^line 1: "),
    ],
)  # fmt: skip
def test_a_mistake_is_refused(broken: Break, name: str, old: str, new: str, said: str) -> None:
    """Would catch a rule that no longer looks; ``said``: place, value, code, as a pattern."""
    found = broken(name, old, new)
    assert any(re.search(said, problem) for problem in found), found


def test_a_header_of_two_lines_is_refused(tmp_path: Path) -> None:
    """Would catch launch files that do not say what they cost and how to stop them."""
    path = tmp_path / "gpu.yaml"
    path.write_text("# Cost, Edit, Start, Submit\n# Dashboard, MLflow, Stop\nname: x\n")
    assert any(re.match(r"line 1: 2\b", problem) for problem in common.check_header(path))


def test_instances_say_what_they_have() -> None:
    """Would catch a machine type with a GPU whose kind or memory is not given."""
    for provider, types in ray_up.instances().items():
        assert types, provider
        for name, facts in types.items():
            keys = {"gpus", "cpus", "memory"} | ({"gpu", "gpu_memory"} if facts["gpus"] else set())
            assert set(facts) == keys, name


def test_aws_instances_are_those_of_aws() -> None:
    """Would catch a wrong GPU, memory or number of cores: moto has AWS's own answer."""
    path = Path(moto.__file__).parent / "ec2" / "resources" / "instance_types.json.gz"
    theirs = json.loads(gzip.decompress(path.read_bytes()))
    for name, facts in ray_up.instances()["aws"].items():
        there = theirs[name]
        gpus = there.get("GpuInfo", {}).get("Gpus", [])
        assert facts["cpus"] == there["VCpuInfo"]["DefaultVCpus"], name
        assert facts["memory"] * 1024 == there["MemoryInfo"]["SizeInMiB"], name
        assert facts["gpus"] == sum(gpu["Count"] for gpu in gpus), name
        for gpu in gpus:
            assert facts["gpu"] == gpu["Name"], name
            size = gpu["MemoryInfo"]["SizeInMiB"] * 2**20 / 1e9
            assert facts["gpu_memory"] == pytest.approx(size, rel=0.08), name


def test_unknown_file_is_refused(tmp_path: Path) -> None:
    """Would catch a misspelt file on the command line that passes."""
    [unknown] = problems(tmp_path / "gpus.yaml")
    assert all(name in unknown for name in RULES)
    assert len(problems(tmp_path / "gpu.yaml")) == 1
