"""Two hosts on one machine: network namespaces with an address and an sshd each, a cable between them, one disk."""

import os
import shutil
import subprocess
import time
from pathlib import Path

PROGRAMS = ("ip", "sshd", "ssh", "pdsh")
ADDRESSES = ("10.77.0.1", "10.77.0.2")  # in the namespaces alone
_PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
_SSHD = """ListenAddress {address}
HostKey {folder}/key
AuthorizedKeysFile {folder}/key.pub
PidFile none
StrictModes no
UsePAM no
PermitRootLogin yes
"""
_SSH = """Host *
IdentityFile {folder}/key
UserKnownHostsFile {folder}/known
StrictHostKeyChecking accept-new
ConnectTimeout 5
ServerAliveInterval 10
ServerAliveCountMax 3
LogLevel ERROR
"""


def missing() -> str:
    """Why there can be no such hosts here; empty: there can."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=_PATH) is None]
    if absent:
        return f"not installed: {', '.join(absent)} (Debian's iproute2, openssh-server, pdsh)"
    probe = ["ip", "netns", "add", "us-jepa-probe"]
    if os.geteuid() != 0 or subprocess.run(probe, env={"PATH": _PATH}, capture_output=True, check=False).returncode:
        return "no right to make network namespaces"
    subprocess.run(["ip", "netns", "del", "us-jepa-probe"], env={"PATH": _PATH}, check=True)
    return ""


class TwoHosts:
    """Namespaces a and b; `command` runs a command on a, whose ssh reaches b.

    Args:
        folder: for keys and settings; it is also the working directory.

    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._daemons = folder, list[subprocess.Popen[bytes]]()
        self._names = [f"us-jepa-{os.getpid()}-{letter}" for letter in "ab"]
        Path("/run/sshd").mkdir(exist_ok=True)
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "key")], check=True)
        (folder / "ssh_config").write_text(_SSH.format(folder=folder))
        (folder / "ssh").write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder}/ssh_config "$@"\n')
        (folder / "ssh").chmod(0o755)
        (folder / "hosts").write_text("".join(f"{address} slots=1\n" for address in ADDRESSES))
        for name in self._names:
            self._ip("netns", "add", name)
        one, other = self._names
        self._ip("link", "add", "name", "eth0", "netns", one, "type", "veth", "peer", "name", "eth0", "netns", other)
        for name, address in zip(self._names, ADDRESSES, strict=True):
            self._ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            self._ip("-n", name, "link", "set", "lo", "up")
            self._ip("-n", name, "link", "set", "eth0", "up")
            self._listen(name, address)

    def command(self, *words: str) -> list[str]:
        """The command line that runs `words` on host a."""
        path = f"PATH={self.folder}:{_PATH}"
        return ["ip", "netns", "exec", self._names[0], "env", "-C", str(self.folder), path, *words]

    def cut(self) -> None:
        """Pull the cable."""
        self._ip("-n", self._names[1], "link", "set", "eth0", "down")

    def mend(self) -> None:
        """Plug it in again."""
        self._ip("-n", self._names[1], "link", "set", "eth0", "up")

    def pids(self, host: int) -> list[int]:
        """Processes on a host, but its sshd."""
        said = subprocess.run(
            ["ip", "netns", "pids", self._names[host]], env={"PATH": _PATH}, capture_output=True, text=True, check=True
        )
        return [int(word) for word in said.stdout.split() if int(word) != self._daemons[host].pid]

    def close(self) -> None:
        """End what still runs on them, and remove them."""
        for place, name in enumerate(self._names):
            for pid in self.pids(place):
                subprocess.run(["kill", "-9", str(pid)], capture_output=True, check=False)  # it may have ended
            self._daemons[place].kill()
            self._daemons[place].wait()
            self._ip("netns", "del", name)

    def _listen(self, name: str, address: str) -> None:
        settings = self.folder / f"sshd_config-{address}"
        settings.write_text(_SSHD.format(address=address, folder=self.folder))
        sshd = [str(shutil.which("sshd", path=_PATH)), "-D", "-f", str(settings), "-E", str(self.folder / "sshd.log")]
        # exec keeps the pid: `ip netns exec` becomes the program
        self._daemons.append(subprocess.Popen(["ip", "netns", "exec", name, *sshd], env={"PATH": _PATH}))
        time.sleep(0.3)

    def _ip(self, *words: str) -> None:
        subprocess.run(["ip", *words], env={"PATH": _PATH}, check=True)
