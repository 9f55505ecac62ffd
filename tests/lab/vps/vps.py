"""One throwaway VPS: made, reached by ssh, rebooted, cut off from the network, and removed without a trace."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from . import network
from .engine import docker, start_engine
from .images import LabImages, ensure_images
from .machine import (
    INIT,
    bounding_set,
    cgroup_layout,
    container_name,
    make_cgroup,
    remove_cgroups,
    security_flags,
)
from .shell import LabError, cache_directory, locked, run, step, write_whole
from .snapshot import Snapshot, copy_volume

LABEL = "prefect-lab.vps"
NAME = re.compile(r"[a-z][a-z0-9-]{0,30}")
SECONDS_TO_BOOT = 90
#: How long a connection without a command on it stays open for the next one.
SECONDS_TO_HOLD = 60
SECONDS_TO_SHUT_DOWN = 120


def volumes(name: str) -> dict[str, str]:
    """Volumes of a VPS and where they are mounted: overlay on overlay is refused, so the engine's data needs them."""
    container = container_name(name)
    return {f"{container}-docker": "/var/lib/docker", f"{container}-containerd": "/var/lib/containerd"}


def _ensure_key() -> Path:
    """The lab's ssh key, made once."""
    key = cache_directory() / "id_ed25519"
    with locked("key"):
        if not key.exists():
            temporary = key.with_suffix(".tmp")
            temporary.unlink(missing_ok=True)
            run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "prefect-lab", "-f", str(temporary)])
            Path(f"{temporary}.pub").rename(f"{key}.pub")
            temporary.rename(key)
    return key


class Vps:
    """A VPS by its name. Making the object touches nothing; `up` makes the VPS or takes the one that is there."""

    def __init__(self, name: str) -> None:
        if not NAME.fullmatch(name):
            raise LabError(f'"{name}" is no name for a VPS', f"choose one that matches {NAME.pattern}")
        self.name = name
        self.container = container_name(name)
        self.known_hosts = cache_directory() / f"known_hosts.{name}"
        self.key = cache_directory() / "id_ed25519"
        self._address = ""

    # -- what it is

    def _inspect(self, template: str) -> str:
        """Docker's answer about the container; empty when there is none."""
        done = docker("container", "inspect", "--format", template, self.container, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    def _label(self, label: str) -> str:
        return self._inspect(f'{{{{index .Config.Labels "{label}"}}}}')

    @property
    def state(self) -> str:
        """`absent`, or docker's word for the container's state, such as `running` or `exited`."""
        return self._inspect("{{.State.Status}}") or "absent"

    @property
    def address(self) -> str:
        """Its address on the lab's network, the same for its whole life; empty when it is absent."""
        self._address = self._address or self._label(f"{LABEL}.address")
        return self._address

    @property
    def domain(self) -> str:
        """The name that it was made with, which this machine and the lab's network resolve; may be empty."""
        return self._label(f"{LABEL}.domain")

    @property
    def image(self) -> str:
        """The image that it was made from."""
        return self._inspect("{{.Config.Image}}")

    # -- life

    def up(self, domain: str | None = None, source: Snapshot | None = None) -> LabImages:
        """Make the VPS, or start the one that is there, and wait until it can be used; gives the lab's images.

        With a domain, this machine and the lab's network resolve that name to the VPS. With a snapshot, a VPS that
        is made is a copy of the one that was kept there. The engine is started and the images are built first where
        need be. Raises LabError.
        """
        start_engine()
        images = ensure_images()
        with locked(f"vps-{self.name}"):
            _ensure_key()
            if self.state == "absent":
                with step(f"creating the VPS {self.name}"):
                    self._create(images, domain, source)
            elif domain is not None and domain != self.domain:
                raise LabError(
                    f'the VPS "{self.name}" was made with the domain "{self.domain}", not "{domain}"',
                    f"python3 -m tests.lab.vps down {self.name}",
                )
            with locked("addresses"):
                network.ensure_network(images)
            if self.state != "running":
                make_cgroup(self.container)
                docker("start", self.container)
            network.edit_hosts_file(self.name, f"{self.address} {self.domain}" if self.domain else None)
            with step(f"waiting for {self.name} at {self.address}"):
                self.wait()
        return images

    def _create(self, images: LabImages, domain: str | None, source: Snapshot | None) -> None:
        """Create the container under another name, and give it its own name when it is whole."""
        half_made = f"{self.container}.new"
        docker("rm", "--force", half_made, check=False)
        for volume, path in volumes(self.name).items():
            # What an interrupted or vanished VPS left there is no part of a new one.
            docker("volume", "rm", volume, check=False)
            docker("volume", "create", f"--label={LABEL}={self.name}", volume)
            if source:
                copy_volume(source.volume(path), volume, images.outsider)
        with locked("addresses"):
            subnet = network.ensure_network(images)
            others = all_vps(network.NETWORK)
            for other in others:
                if domain and other.domain == domain:
                    raise LabError(
                        f'the domain "{domain}" is that of the VPS "{other.name}"',
                        f"python3 -m tests.lab.vps down {other.name}",
                    )
            address = network.pick_address(subnet, [other.address for other in others])
            names = [self.name, domain] if domain else [self.name]
            docker(
                "create", f"--name={half_made}", f"--hostname={self.name}",
                f"--label={LABEL}={self.name}", f"--label={LABEL}.address={address}",
                f"--label={LABEL}.domain={domain or ''}", f"--label={LABEL}.network={network.NETWORK}",
                f"--network={network.NETWORK}", f"--ip={address}", *(f"--network-alias={alias}" for alias in names),
                "--tmpfs=/run:exec,mode=755", "--tmpfs=/run/lock", "--env=container=docker",
                f"--env=LAB_DNS={subnet[network.DNS_ADDRESS]}",
                # `systemctl reboot` inside ends the container, and this starts it again.
                "--restart=on-failure", "--stop-signal=SIGRTMIN+3", f"--stop-timeout={SECONDS_TO_SHUT_DOWN}",
                # How much it gets when all processors are busy (tests/lab/shards.py); 0: as much as the others.
                f"--cpu-shares={os.environ.get('PREFECT_LAB_WEIGHT', '0')}",
                *security_flags(bounding_set(), cgroup_layout(), self.name),
                *(f"--volume={volume}:{path}" for volume, path in volumes(self.name).items()),
                source.image if source else images.vps, "/bin/sh", "-c", INIT,
            )  # fmt: skip
            self._give_identity(half_made, address)
            docker("rename", half_made, self.container)

    def _give_identity(self, container: str, address: str) -> None:
        """Put a new host key and the lab's public key into the container, and that host key into known_hosts.

        Done before the first start, so that the very first connection is checked against the right key.
        """
        with tempfile.TemporaryDirectory(prefix="prefect-lab-") as directory:
            host_key = Path(directory) / "ssh_host_ed25519_key"
            run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"root@{self.name}", "-f", str(host_key)])
            private, public = host_key.read_text(), Path(f"{host_key}.pub").read_text()
        files = {
            "etc/ssh/ssh_host_ed25519_key": (private, 0o600),
            "etc/ssh/ssh_host_ed25519_key.pub": (public, 0o644),
            "root/.ssh/authorized_keys": (Path(f"{self.key}.pub").read_text(), 0o600),
        }
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            folder = tarfile.TarInfo("root/.ssh")
            folder.type, folder.mode = tarfile.DIRTYPE, 0o700
            archive.addfile(folder)
            for path, (content, mode) in files.items():
                entry = tarfile.TarInfo(path)
                entry.size, entry.mode, entry.mtime = len(content.encode()), mode, int(time.time())
                archive.addfile(entry, io.BytesIO(content.encode()))
        docker("cp", "-", f"{container}:/", text=packed.getvalue().decode("ascii"))
        algorithm, key = public.split()[:2]
        write_whole(self.known_hosts, "".join(f"{host} {algorithm} {key}\n" for host in (address, self.name)))

    def wait(self, seconds: float = SECONDS_TO_BOOT) -> None:
        """Wait until ssh answers and systemd says `running`.

        Raises LabError when that takes longer, or when a unit has failed.
        """
        deadline = time.monotonic() + seconds
        said = ""
        while time.monotonic() < deadline:
            done = self.ssh("systemctl is-system-running --wait", check=False, timeout=seconds)
            said = done.stdout.strip() or done.stderr.strip()
            if said == "running":
                return
            if said == "degraded":
                failed = self.ssh("systemctl --failed --plain --no-legend", check=False).stdout.strip()
                raise LabError(
                    f'the VPS "{self.name}" has failed units:\n{failed}',
                    f"python3 -m tests.lab.vps ssh {self.name} journalctl --boot --priority warning",
                )
            if self.state != "running":
                log = docker("logs", "--tail=15", self.container, check=False)
                raise LabError(
                    f'the container "{self.container}" is "{self.state}":\n{log.stdout}{log.stderr}',
                    f"docker logs {self.container}",
                )
            time.sleep(0.3)
        raise LabError(
            f'the VPS "{self.name}" was not ready within "{seconds:.0f}" s; it last said "{said}"',
            f"docker logs {self.container}; python3 -m tests.lab.vps ssh {self.name}",
        )

    def reboot(self, hard: bool = False) -> None:
        """Reboot, and wait until it is ready again. `hard` is a power cut: nothing inside is told."""
        self.hang_up()
        with step(f"{'cutting the power of' if hard else 'rebooting'} {self.name}"):
            if hard:
                docker("kill", self.container)
                docker("start", self.container)
            else:
                docker("restart", self.container)
            self.wait()

    @contextlib.contextmanager
    def throttled(self, cores: float) -> Iterator[None]:
        """The VPS, with the containers in it, has so much of a processor's time and no more."""
        docker("update", f"--cpus={cores}", self.container)
        try:
            yield
        finally:
            docker("update", "--cpu-quota=-1", self.container)

    def down(self) -> None:
        """Remove the VPS and all that belongs to it. Nothing happens when it is not there."""
        with locked(f"vps-{self.name}"):
            self.hang_up()
            for container in (self.container, f"{self.container}.new"):
                docker("rm", "--force", "--volumes", container, check=False)
            self._address = ""
            for volume in volumes(self.name):
                docker("volume", "rm", "--force", volume)
            remove_cgroups(self.container)
            network.edit_hosts_file(self.name, None)
            self.known_hosts.unlink(missing_ok=True)
            self._cut_file.unlink(missing_ok=True)
        with locked("addresses"):
            if not all_vps(network.NETWORK):
                network.remove_network()

    # -- reaching it

    def ssh_options(self) -> list[str]:
        """Options of ssh and scp: our key only, and exactly the host key that was put into this VPS."""
        return [
            "-F", "/dev/null", "-i", str(self.key), "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes",
            "-o", f"UserKnownHostsFile={self.known_hosts}", "-o", "StrictHostKeyChecking=yes",
            "-o", "ConnectTimeout=5", "-o", "LogLevel=ERROR",
        ]  # fmt: skip

    def shared_options(self) -> list[str]:
        """Options with which commands share one connection: a login of its own for each costs ten times the processor
        time (0.29 s against 0.04 s here), and tests that wait for something log in all the time.
        """
        folder = Path(tempfile.gettempdir()) / f"prefect-lab-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        return [
            *self.ssh_options(), "-o", "ControlMaster=auto", "-o", f"ControlPersist={SECONDS_TO_HOLD}",
            "-o", f"ControlPath={folder}/{self.name}-%C", "-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3",
        ]  # fmt: skip

    def hang_up(self) -> None:
        """Close the shared connection: before the VPS goes away, as the other end of a dead one is not told."""
        if self.address:
            run(["ssh", *self.shared_options(), "-O", "exit", f"root@{self.address}"], check=False)

    def ssh_command(self, *words: str, user: str = "root") -> list[str]:
        """The command line that runs `words` (a shell command) on the VPS, or opens a shell, by a login of its own."""
        return ["ssh", *self.ssh_options(), f"{user}@{self.address}", *words]

    def ssh(
        self, command: str, *, text: str | None = None, check: bool = True, timeout: float | None = 600
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell command as root on the VPS; `text` is its standard input, `timeout` in seconds.

        Raises LabError when it fails, unless `check` is false.
        """
        shared = ["ssh", *self.shared_options(), f"root@{self.address}", command]
        return run(shared, text=text, check=check, timeout=timeout)

    def copy(self, source: Path, target: str) -> None:
        """Copy a file or a directory from this machine to a path on the VPS."""
        run(["scp", "-q", "-r", "-p", *self.shared_options(), str(source), f"root@{self.address}:{target}"])

    def fetch(self, source: str, target: Path) -> None:
        """Copy a file or a directory from the VPS to a path on this machine."""
        run(["scp", "-q", "-r", "-p", *self.shared_options(), f"root@{self.address}:{source}", str(target)])

    # -- the network

    @property
    def _cut_file(self) -> Path:
        return cache_directory() / f"cut.{self.name}.json"

    def cut(self) -> None:
        """Cut the VPS off: its cable leads nowhere, while its interface and its address stay as they are."""
        peer = int(self.ssh("cat /sys/class/net/eth0/iflink").stdout)
        self.hang_up()
        links = json.loads(network.on_host_network(self.image, "ip", "-json", "link", "show"))
        link = next(link for link in links if link["ifindex"] == peer)
        write_whole(self._cut_file, json.dumps({"port": link["ifname"], "bridge": link["master"]}))
        network.on_host_network(self.image, "ip", "link", "set", "dev", link["ifname"], "nomaster")

    def heal(self) -> None:
        """Undo `cut`. Nothing happens when the VPS is not cut off."""
        if not self._cut_file.exists():
            return
        cut = json.loads(self._cut_file.read_text())
        links = json.loads(network.on_host_network(self.image, "ip", "-json", "link", "show"))
        # After a reboot the VPS has a new cable, which is plugged in.
        if cut["port"] in [link["ifname"] for link in links]:
            network.on_host_network(self.image, "ip", "link", "set", "dev", cut["port"], "master", cut["bridge"])
        self._cut_file.unlink()

    def outsider(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command (nmap, curl, python3 are there) in a stranger's container on the lab's network."""
        return network.outsider(*command, check=check)


def all_vps(of_network: str | None = None) -> list[Vps]:
    """Every VPS of the lab on this machine, or on one network, by name."""
    filters = [f"--filter=label={LABEL}", *([f"--filter=label={LABEL}.network={of_network}"] if of_network else [])]
    found = docker("ps", "--all", *filters, "--format", f'{{{{.Label "{LABEL}"}}}}')
    return [Vps(name) for name in sorted(set(found.stdout.split()))]


def down_all() -> None:
    """Remove every VPS, what an interrupted run left of one, and the networks with all that is on them."""
    found = docker("volume", "ls", f"--filter=label={LABEL}", "--format", f'{{{{.Label "{LABEL}"}}}}')
    for name in sorted({*(vps.name for vps in all_vps()), *found.stdout.split()}):
        with step(f"removing the VPS {name}"):
            Vps(name).down()
    with locked("addresses"):
        for name in network.all_networks():
            network.remove_network(name)
