"""A SLURM cluster on this machine for as long as a block lasts: one controller, two nodes, loopback, one folder."""

import getpass
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch")
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin"
_OPEN = {"PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED", "STOPPED", "SUSPENDED"}
_CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
# how long a credential lasts, and so how long a requeued job waits before it may start again (default 120 s)
AuthInfo=socket={root}/munge.sock,cred_expire=5
# listen on what the host name resolves to, not everywhere
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
# no cgroups, no accounting, no mail
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MailProg=/bin/true
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
# nodes may say that they have more cores than the machine has
SlurmdParameters=config_overrides
# jobs of minutes, not of days
SchedulerParameters=sched_interval=1,sched_min_interval=0,batch_sched_delay=0,bf_interval=1
KillWait=5
MinJobAge=3600
ReturnToService=2
GresTypes=gpu
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.%n.pid
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4 RealMemory=2000 Gres=gpu:4
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4 RealMemory=2000 Gres=gpu:4
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
# Stand-ins for GPUs: SLURM hands out character devices, and asks no more of them.
_GPUS = "".join(f"Name=gpu File=/dev/{name}\n" for name in ("null", "zero", "full", "random"))


def missing_programs():
    """What of SLURM is not installed here."""
    return [name for name in DAEMONS if shutil.which(name, path=PATH) is None]


class Cluster:
    """Calls of SLURM's commands, and waiting for what they have begun."""

    def __init__(self, root):
        self.env = {**os.environ, "PATH": PATH, "SLURM_CONF": str(root / "slurm.conf")}

    def call(self, *command, check=True, timeout=60, **environment):
        """Output of a command; its error output is in the exception."""
        env = {**self.env, **environment}
        done = subprocess.run(
            list(map(str, command)), env=env, capture_output=True, text=True, timeout=timeout, check=False
        )
        assert not check or done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done if not check else done.stdout.strip()

    def states(self, job):
        """State of a job, or of every task of an array, in order of their numbers."""
        shown = self.call("scontrol", "show", "job", job, "-o")
        found = re.findall(r"^JobId=(\d+)(?: ArrayJobId=\d+ ArrayTaskId=(\S+))?.*? JobState=(\S+)", shown, re.MULTILINE)
        return [state for *_, state in sorted(found, key=lambda m: (m[1].zfill(9), m[0]))]

    def wait(self, *jobs, timeout=600):
        """Final states of jobs."""
        until = time.monotonic() + timeout
        while True:
            states = {job: self.states(job) for job in jobs}
            if not any(_OPEN & set(found) for found in states.values()):
                return states[jobs[0]] if len(jobs) == 1 else [states[job] for job in jobs]
            assert time.monotonic() < until, f"after {timeout} s: {states}"
            time.sleep(0.3)


def wait_until(condition, *, timeout=300, every=0.1):
    """The first value of `condition()` that is true."""
    until = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < until, f"not in {timeout} s: {condition}"
        time.sleep(every)
    return value


@contextmanager
def running_cluster():
    """A cluster of two nodes with four cores and four stand-ins for GPUs each."""
    with ExitStack() as stack:
        # Not pytest's folder: the path of a socket has to be short.
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True)))
        cluster = Cluster(root)
        _configure(root)
        files = {"key-file": "key", "socket": "sock", "seed-file": "seed", "pid-file": "pid"}
        munged = ["munged", "--foreground", "--force", *(f"--{o}={root}/munge.{end}" for o, end in files.items())]
        stack.enter_context(_daemon(cluster, root, "munged", munged))
        wait_until((root / "munge.sock").exists, timeout=30)
        stack.enter_context(_daemon(cluster, root, "slurmctld", ["slurmctld", "-D", "-c"]))
        for node in ("n1", "n2"):
            stack.enter_context(_daemon(cluster, root, node, ["slurmd", "-D", "-N", node]))
        stack.callback(_cancel_all, cluster)  # before the nodes go: jobs outlive slurmd
        try:
            wait_until(lambda: _num_idle(cluster) == 2, timeout=60)
        except AssertionError as error:
            logs = "\n".join(path.read_text(errors="replace")[-2000:] for path in root.glob("*.log"))
            raise AssertionError(f"the nodes did not come up\n{logs}") from error
        yield cluster


def _configure(root):
    for name in ("state", "spool/n1", "spool/n2"):
        (root / name).mkdir(parents=True)
    (root / "munge.key").write_bytes(os.urandom(128))
    (root / "munge.key").chmod(0o400)
    text = _CONF.format(host=socket.gethostname().partition(".")[0], user=getpass.getuser(), root=root, ports=_ports(3))
    (root / "slurm.conf").write_text(text)
    (root / "gres.conf").write_text(_GPUS)


def _ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


@contextmanager
def _daemon(cluster, root, name, command):
    with (root / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            command, env=cluster.env, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _num_idle(cluster):
    try:  # a controller that is not up yet lets its clients wait
        found = cluster.call("sinfo", "--noheader", "-N", "-t", "idle", "-o", "%N", check=False, timeout=5)
    except subprocess.TimeoutExpired:
        return 0
    return len(found.stdout.split())


def _cancel_all(cluster):
    cluster.call("scancel", "-u", getpass.getuser(), check=False)
    wait_until(lambda: not cluster.call("squeue", "-h", check=False).stdout.strip(), timeout=60)
