"""A Slurm of one node from the packages of the distribution, as root; all of its files are in one folder."""

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.train.tiny import environment, free_port

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged")
_CONF = """ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld_port}
SlurmdPort={slurmd_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
MailProg=/bin/true
ReturnToService=2
MinJobAge=86400
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Why there can be no Slurm here; empty: there can."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]
    if absent:
        return f"not installed: {', '.join(absent)} (make slurm-test installs Debian's packages)"
    return "" if os.geteuid() == 0 else "a Slurm of one's own needs root"


class Slurm:
    """munged, slurmctld and slurmd on loopback, until stop().

    Args:
        folder: where all their files go.
        cpus: that the node pretends to have.

    """

    def __init__(self, folder: Path, cpus: int) -> None:
        self._folder, self._processes = folder, list[subprocess.Popen[bytes]]()
        for name in ("state", "spool", "munge"):
            (folder / name).mkdir(parents=True)
        munge, conf = folder / "munge", folder / "slurm.conf"
        munge.chmod(0o700)
        (munge / "key").touch(mode=0o600)
        (munge / "key").write_bytes(secrets.token_bytes(1024))
        conf.write_text(
            _CONF.format(
                host=socket.gethostname().partition(".")[0], folder=folder, cpus=cpus, ctld_port=free_port(),
                slurmd_port=free_port(),
            )
        )  # fmt: skip
        self.environment = environment(SLURM_CONF=str(conf))
        self.environment["PATH"] += ":/usr/sbin"
        files = {"socket": "socket", "key-file": "key", "log-file": "log", "pid-file": "pid", "seed-file": "seed"}
        self._start("munged", "--force", "--foreground", *(f"--{name}={munge / at}" for name, at in files.items()))
        self._until((munge / "socket").exists)
        self._start("slurmctld", "-D", "-f", str(conf))
        self._start("slurmd", "-D", "-f", str(conf))
        self._until(lambda: "idle" in self.say("sinfo", "--noheader", "--format=%t", check=False))

    def stop(self) -> None:
        """End the jobs, then the daemons."""
        self.say("scancel", "--user=root", check=False)
        for process in reversed(self._processes):
            process.terminate()
        for process in reversed(self._processes):
            process.wait(timeout=30)

    def say(self, *command: str, check: bool = True, **more: str) -> str:
        """Run a command against this Slurm, and return what it printed."""
        done = subprocess.run(
            command, env=self.environment | more, capture_output=True, text=True, check=False, timeout=60,
            cwd=self._folder,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def jobs(self, number: str) -> list[dict[str, str]]:
        """What Slurm knows about a job, or about the tasks of an array."""
        lines = self.say("scontrol", "show", "job", number, "--oneliner").splitlines()
        return [dict(word.partition("=")[::2] for word in line.split()) for line in lines if line.strip()]

    def states(self, number: str) -> set[str]:
        """Of a job or an array."""
        return {job["JobState"] for job in self.jobs(number)}

    def wait(self, number: str, seconds: float = 300) -> None:
        """Until a job has completed; fails with its output when it ends otherwise."""

        def has_ended() -> bool:
            states = self.states(number)
            assert states <= {"PENDING", "RUNNING", "COMPLETING", "COMPLETED"}, f"{states}\n{self.output(number)}"
            return states == {"COMPLETED"}

        self._until(has_ended, seconds)

    def output(self, number: str) -> str:
        """The end of what a job printed, tasks one after the other."""
        paths = sorted({job["StdOut"] for job in self.jobs(number)})
        return "\n".join(Path(path).read_text()[-4000:] for path in paths if Path(path).exists())

    def _start(self, *command: str) -> None:
        with (self._folder / f"{command[0]}.log").open("wb") as log:
            self._processes.append(subprocess.Popen(command, env=self.environment, stdout=log, stderr=log))

    def _until(self, is_so: Callable[[], object], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not is_so():
            assert time.monotonic() < deadline, self._logs()
            assert all(process.poll() is None for process in self._processes), self._logs()
            time.sleep(0.3)

    def _logs(self) -> str:
        return "\n".join(f"{path.name}:\n{path.read_text()[-2000:]}" for path in self._folder.glob("*.log"))
