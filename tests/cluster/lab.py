"""Machines for a launcher to start: network namespaces with an sshd each, on one bridge.

Each has its own address, processes, home folder and /tmp/ray, so that ``ray stop`` and two raylets
with the same ports do what they do on separate machines; files elsewhere are shared, as on a
network disk. Nothing of it can be reached from outside, and killing the lab ends all of it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

NETWORK = "10.77.0"
LAB = """
set -eu
mount --bind "$LAB_FOLDER/ray" /tmp/ray
ip link set lo up
ip link add br0 type bridge
ip addr add {network}.1/24 dev br0
ip link set br0 up
for name in {names}; do
  unshare --net --mount --pid --uts --fork --mount-proc bash -c "$LAB_NODE" lab-node "$name" &
  while [ "$(readlink /proc/$!/ns/net)" = "$(readlink /proc/self/ns/net)" ]; do sleep 0.05; done
  ip link add "to-$name" type veth peer name eth0 netns $!
  ip link set "to-$name" master br0 up
done
touch "$LAB_FOLDER/ready"
exec sleep infinity
"""
NODE = """
set -eu
name=$1
folder=$LAB_FOLDER/$name
address=$(cat "$folder/address")
hostname "$name"
case "$LAB_PYTHON" in /root/*)
  # Python itself is in the home folder that this hides.
  mkdir -p "$folder/home/${{LAB_PYTHON#/root/}}"
  mount --bind "$LAB_PYTHON" "$folder/home/${{LAB_PYTHON#/root/}}"
esac
mount --rbind "$folder/home" /root
mount --bind "$folder/ray" /tmp/ray
mount --bind "$folder/hosts" /etc/hosts
ip link set lo up
while ! ip link set eth0 up 2>/dev/null; do sleep 0.05; done
ip addr add "$address/24" dev eth0
ip route add default via {network}.1
cd /root
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin /usr/sbin/sshd -D -e -f "$folder/sshd_config" \
  2>"$folder/sshd.log"
"""
SSHD = """
Port 22
ListenAddress {address}
HostKey {folder}/host_key
PidFile none
AuthorizedKeysFile {folder}/authorized_keys
PermitRootLogin prohibit-password
PasswordAuthentication no
UsePAM no
StrictModes no
Subsystem sftp internal-sftp
"""


def missing() -> str:
    """What a lab needs and this machine lacks; empty if nothing."""
    if os.geteuid() != 0:
        return "root, for network namespaces"
    for tool in ("sshd", "ssh", "ssh-keygen", "rsync", "unshare", "nsenter", "setpriv", "ip"):
        if shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None:
            return tool
    run = subprocess.run(["unshare", "--net", "--pid", "--fork", "true"], check=False)
    return "" if run.returncode == 0 else "the right to make namespaces"


class Lab:
    """``names`` become machines ``10.77.0.11``, ``.12``, ...; a context manager."""

    def __init__(self, folder: Path, names: tuple[str, ...]) -> None:
        self.folder, self.key = folder, folder / "key"
        self.addresses = {name: f"{NETWORK}.{11 + i}" for i, name in enumerate(names)}
        (folder / "ray").mkdir(parents=True)
        Path("/tmp/ray").mkdir(exist_ok=True)
        Path("/run/sshd").mkdir(exist_ok=True)
        self._make_key(self.key)
        for name, address in self.addresses.items():
            self._make_node(name, address)

    def _make_key(self, path: Path) -> None:
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)]
        subprocess.run(command, check=True)

    def _make_node(self, name: str, address: str) -> None:
        folder = self.folder / name
        for part in ("home", "ray"):
            (folder / part).mkdir(parents=True)
        hosts = f"127.0.0.1 localhost\n{address} {name}\n"
        (folder / "address").write_text(address)
        (folder / "hosts").write_text(hosts)
        (folder / "sshd_config").write_text(SSHD.format(address=address, folder=folder))
        shutil.copy(self.key.with_suffix(".pub"), folder / "authorized_keys")
        self._make_key(folder / "host_key")

    def home(self, name: str) -> Path:
        return self.folder / name / "home"

    def __enter__(self) -> Lab:
        script = LAB.format(network=NETWORK, names=" ".join(self.addresses))
        environment = {
            **os.environ,
            "LAB_FOLDER": str(self.folder),
            "LAB_PYTHON": sys.base_prefix,
            "LAB_NODE": NODE.format(network=NETWORK),
        }
        self._log = (self.folder / "lab.log").open("w")
        self._process = subprocess.Popen(
            # However this process ends, the lab does too.
            ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "--mount", "--pid", "--fork",
             "--kill-child", "--mount-proc", "bash", "-c", script],
            env=environment, stdout=self._log, stderr=self._log, start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + 30
        while not (self.folder / "ready").exists() or not self._answer():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._end()
                raise RuntimeError((self.folder / "lab.log").read_text())
            time.sleep(0.2)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def _end(self) -> None:
        # The first process of the lab is the child of unshare; with it all others end.
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self._log.close()

    def _answer(self) -> bool:
        return all(self.ssh(name, "true").returncode == 0 for name in self.addresses)

    def command(self, *words: str) -> list[str]:
        """``words``, run inside of the lab, beside its machines."""
        first = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        pid = first.read_text().split()[0]
        return ["nsenter", "-t", pid, "--net", "--mount", "--pid", f"--wd={os.getcwd()}", *words]

    def run(
        self, *words: str, cwd: Path | None = None, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Standard output and error together."""
        within = self.command("env", f"--chdir={cwd or Path.cwd()}", *words)
        return subprocess.run(
            within, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip

    def ssh_words(self, name: str, *options: str) -> list[str]:
        return [
            "ssh", "-i", str(self.key), "-o", "StrictHostKeyChecking=no", "-o", "LogLevel=ERROR",
            "-o", "UserKnownHostsFile=/dev/null", "-o", "ConnectTimeout=5", *options,
            f"root@{self.addresses[name]}",
        ]  # fmt: skip

    def ssh(self, name: str, command: str) -> subprocess.CompletedProcess[str]:
        """``command`` on a machine."""
        return self.run(*self.ssh_words(name), command)
