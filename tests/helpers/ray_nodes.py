"""Ray nodes on loopback addresses of this machine: a cluster of several nodes without several machines."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

RAY = str(Path(sys.executable).parent / "ray")
TOKEN = "0123456789abcdef0123456789abcdef"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.2", 0))
        return int(probe.getsockname()[1])


def auth_environment(token: str | None) -> dict[str, str]:
    """What every process of a cluster must have: without a token, authentication is off."""
    if token is None:
        return {"RAY_AUTH_MODE": "disabled"}
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}


@dataclass
class Nodes:
    """A running cluster."""

    address: str
    dashboard: str
    environment: dict[str, str]
    cpus: int
    working_dir: Path | None = None
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)

    def start(self, *arguments: str, before: Sequence[str] = ()) -> None:
        """Runs ``ray start`` and returns at once."""
        # Short: sockets lie in it, and their paths may have 107 characters. One for each node: they must not share.
        folder = Path(tempfile.mkdtemp(prefix="clu", dir="/tmp"))
        self.folders.append(folder)
        command = [*before, RAY, "start", "--block", "--temp-dir", str(folder), "--disable-usage-stats"]
        # Another cluster's agents may be at the same addresses: without this, these would never answer.
        command += ["--dashboard-agent-listen-port", str(free_port())]
        command += ["--object-store-memory", str(80 * 2**20), "--log-color", "false", *arguments]
        with (folder / "out").open("w") as out:
            process = subprocess.Popen(
                command,
                env=self.environment,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=self.working_dir,
            )
        self.processes.append(process)

    def join(self, *, before: Sequence[str] = ()) -> None:
        """One more node that has joined soon; ``before`` is put before its command."""
        number = len(self.processes)
        where = ["--address", self.address, "--node-ip-address", f"127.0.0.{number + 2}"]
        self.start(*where, "--num-cpus", str(self.cpus), "--labels", f"pool=p{number}", before=before)

    def wait_for(self, number: int) -> None:
        """Returns when so many nodes are there."""
        code = (
            "import ray, sys, time; ray.init(address=sys.argv[1], log_to_driver=False, logging_level='ERROR')\n"
            "for _ in range(300):\n"
            "    if sum(n['Alive'] for n in ray.nodes()) >= int(sys.argv[2]): sys.exit(0)\n"
            "    time.sleep(0.2)\n"
            "sys.exit(1)"
        )
        done = self.run(sys.executable, "-c", code, self.address, str(number), timeout=120)
        assert done.returncode == 0, done.stderr[-2000:]

    def stop(self) -> None:
        """Ends the processes that were started here and theirs, and no others."""
        living = [process for process in reversed(self.processes) if process.poll() is None]
        family = [member for process in living for member in psutil.Process(process.pid).children(recursive=True)]
        for process in living:
            process.send_signal(signal.SIGTERM)
        for process in living:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(15)
        for member in [*living, *family]:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        for process in living:
            process.wait(15)
        for folder in self.folders:
            shutil.rmtree(folder, ignore_errors=True)

    def run(self, *command: str, environment: dict[str, str] | None = None, **options: Any) -> Any:
        """A command of a person who works with this cluster."""
        values = {**self.environment, **(environment or {})}
        options = {"timeout": 240, "capture_output": True, "text": True, "env": values, **options}
        return subprocess.run(list(command), **options)


def join_cluster(nodes: tuple[str, dict[str, str]]) -> None:
    """Joins a cluster, by its address and environment, as one of several processes that see each other's actors."""
    address, environment = nodes
    os.environ.update(environment)
    import ray

    ray.init(address=address, namespace="tests", log_to_driver=False, logging_level="ERROR")


def clean_environment(token: str | None = None) -> dict[str, str]:
    """This process's environment, with nothing of another cluster's."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "ULD_DS__"))}
    return {**kept, **auth_environment(token), "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2", "HF_HUB_OFFLINE": "1"}


@contextlib.contextmanager
def ray_nodes(
    number: int,
    *,
    cpus: int = 1,
    head_cpus: int | None = None,
    token: str | None = None,
    dashboard: bool = False,
    environment: Mapping[str, str] | None = None,
    working_dir: Path | None = None,
) -> Iterator[Nodes]:
    """A cluster; node i is at 127.0.0.(2 + i) and has the label pool=p<i>.

    Args:
        number: of nodes, the head included.
        cpus: of each node.
        head_cpus: of the head. Default: ``cpus``.
        token: turns token authentication on.
        dashboard: serve the job API.
        environment: more of it, for nodes and what runs on them.
        working_dir: that nodes are started in, and jobs that bring none.
    """
    port, dashboard_port = free_port(), free_port()
    variables = {**clean_environment(token), **(environment or {})}
    nodes = Nodes(f"127.0.0.2:{port}", f"http://127.0.0.2:{dashboard_port}", variables, cpus, working_dir)
    of_head = cpus if head_cpus is None else head_cpus
    head = ["--head", "--node-ip-address", "127.0.0.2", "--port", str(port), "--num-cpus", str(of_head)]
    head += ["--labels", "pool=p0", "--include-dashboard", str(dashboard).lower()]
    head += ["--dashboard-host", "127.0.0.2", "--dashboard-port", str(dashboard_port)]
    try:
        nodes.start(*head)
        _wait_for_port(port, nodes.processes[0])
        for _ in range(1, number):
            nodes.join()
        nodes.wait_for(number)
        yield nodes
    finally:
        nodes.stop()


def _wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(300):
        assert process.poll() is None, "the head node did not start"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.2", port), timeout=1):
            return
        time.sleep(0.2)
    raise AssertionError("no head node after 60 s")
