"""One throwaway VPS: made, reached by ssh, rebooted, cut off from the network, and removed without a trace."""

from __future__ import annotations

import fcntl
import io
import ipaddress
import json
import os
import re
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .engine import docker, start_engine
from .images import LabImages, ensure_images
from .shell import LabError, cache_directory, locked, run, say, step, write_whole

NETWORK = "prefect-lab"
LABEL = "prefect-lab.vps"
NAME = re.compile(r"[a-z][a-z0-9-]{0,30}")
HOSTS_FILE = Path("/etc/hosts")
# Of the network's addresses the first eight are for its gateway and outsiders (Docker gives them out), one is the
# name server's, and the VPSs have theirs from the tenth on.
OUTSIDERS_PREFIX = 29
DNS_ADDRESS = 9
FIRST_ADDRESS = 10
DNS_CONTAINER = "prefect-lab-dns"
SECONDS_TO_BOOT = 90
SECONDS_TO_SHUT_DOWN = 120

# Capabilities by their number in the kernel (include/uapi/linux/capability.h). Its last three, PERFMON, BPF and
# CHECKPOINT_RESTORE, are left out: Debian 12's engine does not know them, and SYS_ADMIN includes what they allow.
CAPABILITIES = (
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE "
    "NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN "
    "SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE "
    "MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ"
).split()
# The kernel's modules and clock are the machine's, not the VPS's: with these a playbook in the lab would change
# them. Without them systemd skips the units that would (ConditionCapability=).
WITHHELD = {"SYS_MODULE", "SYS_TIME"}

# What runs before systemd, as PID 1 itself: `exec` keeps the process.
# - Shared mounts, or systemd credentials (LoadCredential=) silently have no directory.
# - Plain files where Docker mounts its own, so that the host's name can be changed, and a name server with an
#   address: Docker's own (127.0.0.11) lives in packet filter rules that a firewall's reload takes away, and a
#   Docker engine inside would not hand it on to its containers.
# - A boot id of its own for each boot: the kernel's is the machine's, and a reboot would show nowhere.
# - A writable cgroup tree that is this VPS's alone: on a hybrid host the bound directory is entered and made the
#   root of a cgroup namespace of its own (or two VPSs would be each other's /system.slice); what an earlier boot
#   left in it goes. On a pure v2 host docker mounts the container's own tree, read-only.
INIT = """
mount --make-rshared /
for file in hostname hosts resolv.conf; do
    content=$(cat /etc/$file)
    umount /etc/$file
    test -s /etc/$file || printf '%s\\n' "$content" > /etc/$file
done
printf 'nameserver %s\\n' "$LAB_DNS" > /etc/resolv.conf
cat /proc/sys/kernel/random/uuid > /run/lab-boot-id
mount --bind /run/lab-boot-id /proc/sys/kernel/random/boot_id
if [ "$LAB_CGROUPS" = hybrid ]; then
    find /sys/fs/cgroup -mindepth 1 -depth -type d -exec rmdir {} + 2>/dev/null
    echo $$ > /sys/fs/cgroup/cgroup.procs
    exec env -u LAB_CGROUPS -u LAB_DNS unshare --cgroup /sbin/init
fi
mount -o remount,rw /sys/fs/cgroup
exec env -u LAB_DNS /sbin/init
"""


@dataclass(frozen=True)
class Cgroups:
    """How this machine mounts its control groups: `layout` is unified or hybrid, `root` the v2 mount."""

    layout: str
    root: Path


# --- decisions -------------------------------------------------------------------------------------------------


def capabilities_in(bounding_set: int) -> list[str]:
    """Capabilities of a bounding set (CapBnd of /proc/self/status, as a number) that a VPS gets."""
    names = [name for number, name in enumerate(CAPABILITIES) if bounding_set >> number & 1]
    return [name for name in names if name not in WITHHELD]


def cgroup_layout(root: Path = Path("/sys/fs/cgroup")) -> Cgroups:
    """Find the v2 hierarchy. Raises LabError where there is none: systemd 257 refuses version 1."""
    if (root / "cgroup.controllers").exists():
        return Cgroups("unified", root)
    if (root / "unified" / "cgroup.procs").exists():
        return Cgroups("hybrid", root / "unified")
    raise LabError(
        f'"{root}" has no cgroup v2 hierarchy, and the systemd of Debian 13 needs one',
        f"mkdir -p {root}/unified && mount -t cgroup2 cgroup2 {root}/unified",
    )


def security_flags(bounding_set: int, cgroups: Cgroups, name: str) -> list[str]:
    """Flags of `docker create` that let systemd and a Docker engine run inside.

    Not --privileged: it fails where the machine's bounding set lacks a capability, and would hand over devices.
    """
    flags = ["--cap-drop=ALL"]
    flags += [f"--cap-add={capability}" for capability in capabilities_in(bounding_set)]
    flags += ["--security-opt=seccomp=unconfined", "--security-opt=apparmor=unconfined"]
    flags += ["--security-opt=systempaths=unconfined"]
    if cgroups.layout == "hybrid":
        flags += [f"--volume={cgroups.root}/{container_name(name)}:/sys/fs/cgroup:rw", "--env=LAB_CGROUPS=hybrid"]
    else:
        flags += ["--cgroupns=private"]
    return flags


def container_name(name: str) -> str:
    """Name of a VPS's container; its volumes add what they hold."""
    return f"prefect-lab-{name}"


def volumes(name: str) -> dict[str, str]:
    """Volumes of a VPS and where they are mounted: overlay on overlay is refused, so the engine's data needs them."""
    container = container_name(name)
    return {f"{container}-docker": "/var/lib/docker", f"{container}-containerd": "/var/lib/containerd"}


def pick_subnet(taken: Iterable[str]) -> str:
    """A private /24 that overlaps none of the networks in `taken` (in CIDR notation, a default route left out)."""
    used = [ipaddress.ip_network(cidr, strict=False) for cidr in taken]
    used = [network for network in used if network.version == 4 and network.prefixlen]
    for third in range(80, 256):
        candidate = ipaddress.ip_network(f"10.213.{third}.0/24")
        if not any(candidate.overlaps(network) for network in used):
            return str(candidate)
    raise LabError("no private /24 of 10.213.0.0/16 is free", "ip route; docker network ls")


def pick_address(subnet: ipaddress.IPv4Network, taken: Iterable[str]) -> str:
    """The lowest free address for a VPS. It is fixed for the VPS's life, so a reboot keeps it."""
    used = set(taken)
    for address in list(subnet.hosts())[FIRST_ADDRESS - 1 :]:
        if str(address) not in used:
            return str(address)
    raise LabError(f'no address of "{subnet}" is free', "python3 -m tests.lab.vps down --all")


def hosts_lines(text: str, name: str, entry: str | None) -> str:
    """The text of /etc/hosts without the marked line of this VPS and, if `entry` is given, with it anew."""
    mark = f"# prefect-lab VPS {name}"
    lines = [line for line in text.splitlines() if not line.endswith(mark)]
    if entry:
        lines.append(f"{entry} {mark}")
    return "\n".join(lines) + "\n"


# --- what the machine has --------------------------------------------------------------------------------------


def _bounding_set() -> int:
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"^CapBnd:\s*([0-9a-f]+)$", status, re.MULTILINE).group(1), 16)


def _routes() -> list[str]:
    """The machine's IPv4 routes in CIDR notation."""
    found = []
    for line in Path("/proc/net/route").read_text().splitlines()[1:]:
        fields = line.split()
        destination, mask = (int.from_bytes(bytes.fromhex(fields[i]), "little") for i in (1, 7))
        found.append(f"{ipaddress.ip_address(destination)}/{ipaddress.ip_address(mask)}")
    return found


def _ensure_network(images: LabImages) -> ipaddress.IPv4Network:
    """Make the lab's network and its name server if they are not there. The caller holds the lock "addresses"."""
    template = "{{range .IPAM.Config}}{{.Subnet}}{{end}}"
    found = docker("network", "inspect", "--format", template, NETWORK, check=False)
    subnet = ipaddress.IPv4Network(found.stdout.strip() if found.returncode == 0 else pick_subnet(_routes()))
    if found.returncode:
        docker(
            "network", "create", "--label=prefect-lab", f"--subnet={subnet}",
            f"--ip-range={subnet.network_address}/{OUTSIDERS_PREFIX}", NETWORK,
        )  # fmt: skip
    running = docker("container", "inspect", "--format", "{{.State.Running}}", DNS_CONTAINER, check=False)
    if running.stdout.strip() != "true":
        docker("rm", "--force", DNS_CONTAINER, check=False)
        # It asks Docker's own name server, which knows the VPSs and, for the rest, asks what this machine asks.
        # Nothing is cached: a new VPS may have an old one's name.
        docker(
            "run", "--detach", "--restart=unless-stopped", "--label=prefect-lab", f"--name={DNS_CONTAINER}",
            f"--network={NETWORK}", f"--ip={subnet[DNS_ADDRESS]}", images.outsider,
            "dnsmasq", "--keep-in-foreground", "--user=root", "--no-hosts", "--no-resolv", "--cache-size=0",
            "--server=127.0.0.11",
        )  # fmt: skip
    return subnet


def _remove_network() -> None:
    """Remove the lab's network and what else is on it, unless a VPS is left."""
    with locked("addresses"):
        if all_vps():
            return
        for container in docker("ps", "--all", "--quiet", "--filter=label=prefect-lab").stdout.split():
            docker("rm", "--force", "--volumes", container)
        if docker("network", "inspect", NETWORK, check=False).returncode == 0:
            docker("network", "rm", NETWORK)


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


def _edit_hosts_file(name: str, entry: str | None) -> None:
    """Keep this VPS's line in /etc/hosts. In place: the file is a bind mount in some sandboxes."""
    before = HOSTS_FILE.read_text()
    if hosts_lines(before, name, entry) == before:
        return
    if not os.access(HOSTS_FILE, os.W_OK):
        if entry:
            say(f'HINT: this user may not write {HOSTS_FILE}; add there: "{entry}"')
        return
    with HOSTS_FILE.open("r+") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        after = hosts_lines(stream.read(), name, entry)
        stream.seek(0)
        stream.write(after)
        stream.truncate()


# --- the VPS ---------------------------------------------------------------------------------------------------


class Vps:
    """A VPS by its name. Making the object touches nothing; `up` makes the VPS or takes the one that is there."""

    def __init__(self, name: str) -> None:
        if not NAME.fullmatch(name):
            raise LabError(f'"{name}" is no name for a VPS', f"choose one that matches {NAME.pattern}")
        self.name = name
        self.container = container_name(name)
        self.known_hosts = cache_directory() / f"known_hosts.{name}"
        self.key = cache_directory() / "id_ed25519"

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
        return self._label(f"{LABEL}.address")

    @property
    def domain(self) -> str:
        """The name that it was made with, which this machine and the lab's network resolve; may be empty."""
        return self._label(f"{LABEL}.domain")

    @property
    def image(self) -> str:
        """The image that it was made from."""
        return self._inspect("{{.Config.Image}}")

    # -- life

    def up(self, domain: str | None = None) -> LabImages:
        """Make the VPS, or start the one that is there, and wait until it can be used; gives the lab's images.

        With a domain, this machine and the lab's network resolve that name to the VPS. The engine is started and
        the images are built first where need be. Raises LabError.
        """
        start_engine()
        images = ensure_images()
        with locked(f"vps-{self.name}"):
            _ensure_key()
            if self.state == "absent":
                with step(f"creating the VPS {self.name}"):
                    self._create(images, domain)
            elif domain is not None and domain != self.domain:
                raise LabError(
                    f'the VPS "{self.name}" was made with the domain "{self.domain}", not "{domain}"',
                    f"python3 -m tests.lab.vps down {self.name}",
                )
            with locked("addresses"):
                _ensure_network(images)
            if self.state != "running":
                _make_cgroup(self.container)
                docker("start", self.container)
            _edit_hosts_file(self.name, f"{self.address} {self.domain}" if self.domain else None)
            with step(f"waiting for {self.name} at {self.address}"):
                self.wait()
        return images

    def _create(self, images: LabImages, domain: str | None) -> None:
        """Create the container under another name, and give it its own name when it is whole."""
        half_made = f"{self.container}.new"
        docker("rm", "--force", half_made, check=False)
        for volume in volumes(self.name):
            # What an interrupted or vanished VPS left there is no part of a new one.
            docker("volume", "rm", volume, check=False)
            docker("volume", "create", f"--label={LABEL}={self.name}", volume)
        with locked("addresses"):
            subnet = _ensure_network(images)
            others = all_vps()
            for other in others:
                if domain and other.domain == domain:
                    raise LabError(
                        f'the domain "{domain}" is that of the VPS "{other.name}"',
                        f"python3 -m tests.lab.vps down {other.name}",
                    )
            address = pick_address(subnet, [other.address for other in others])
            names = [self.name, domain] if domain else [self.name]
            docker(
                "create", f"--name={half_made}", f"--hostname={self.name}",
                f"--label={LABEL}={self.name}", f"--label={LABEL}.address={address}",
                f"--label={LABEL}.domain={domain or ''}",
                f"--network={NETWORK}", f"--ip={address}", *(f"--network-alias={alias}" for alias in names),
                "--tmpfs=/run:exec,mode=755", "--tmpfs=/run/lock", "--env=container=docker",
                f"--env=LAB_DNS={subnet[DNS_ADDRESS]}",
                # `systemctl reboot` inside ends the container, and this starts it again.
                "--restart=on-failure", "--stop-signal=SIGRTMIN+3", f"--stop-timeout={SECONDS_TO_SHUT_DOWN}",
                *security_flags(_bounding_set(), cgroup_layout(), self.name),
                *(f"--volume={volume}:{path}" for volume, path in volumes(self.name).items()),
                images.vps, "/bin/sh", "-c", INIT,
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
        with step(f"{'cutting the power of' if hard else 'rebooting'} {self.name}"):
            if hard:
                docker("kill", self.container)
                docker("start", self.container)
            else:
                docker("restart", self.container)
            self.wait()

    def down(self) -> None:
        """Remove the VPS and all that belongs to it. Nothing happens when it is not there."""
        with locked(f"vps-{self.name}"):
            for container in (self.container, f"{self.container}.new"):
                docker("rm", "--force", "--volumes", container, check=False)
            for volume in volumes(self.name):
                docker("volume", "rm", "--force", volume)
            _remove_cgroups(self.container)
            _edit_hosts_file(self.name, None)
            self.known_hosts.unlink(missing_ok=True)
            self._cut_file.unlink(missing_ok=True)
        _remove_network()

    # -- reaching it

    def ssh_options(self) -> list[str]:
        """Options of ssh and scp: our key only, and exactly the host key that was put into this VPS."""
        return [
            "-F", "/dev/null", "-i", str(self.key), "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes",
            "-o", f"UserKnownHostsFile={self.known_hosts}", "-o", "StrictHostKeyChecking=yes",
            "-o", "ConnectTimeout=5", "-o", "LogLevel=ERROR",
        ]  # fmt: skip

    def ssh_command(self, *words: str, user: str = "root") -> list[str]:
        """The command line that runs `words` (a shell command) on the VPS, or opens a shell."""
        return ["ssh", *self.ssh_options(), f"{user}@{self.address}", *words]

    def ssh(
        self, command: str, *, text: str | None = None, check: bool = True, timeout: float | None = 600
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell command as root on the VPS; `text` is its standard input, `timeout` in seconds.

        Raises LabError when it fails, unless `check` is false.
        """
        return run(self.ssh_command(command), text=text, check=check, timeout=timeout)

    def copy(self, source: Path, target: str) -> None:
        """Copy a file or a directory from this machine to a path on the VPS."""
        run(["scp", "-q", "-r", "-p", *self.ssh_options(), str(source), f"root@{self.address}:{target}"])

    def fetch(self, source: str, target: Path) -> None:
        """Copy a file or a directory from the VPS to a path on this machine."""
        run(["scp", "-q", "-r", "-p", *self.ssh_options(), f"root@{self.address}:{source}", str(target)])

    # -- the network

    @property
    def _cut_file(self) -> Path:
        return cache_directory() / f"cut.{self.name}.json"

    def cut(self) -> None:
        """Cut the VPS off: its cable leads nowhere, while its interface and its address stay as they are."""
        peer = int(self.ssh("cat /sys/class/net/eth0/iflink").stdout)
        links = json.loads(_on_host_network(self.image, "ip", "-json", "link", "show"))
        link = next(link for link in links if link["ifindex"] == peer)
        write_whole(self._cut_file, json.dumps({"port": link["ifname"], "bridge": link["master"]}))
        _on_host_network(self.image, "ip", "link", "set", "dev", link["ifname"], "nomaster")

    def heal(self) -> None:
        """Undo `cut`. Nothing happens when the VPS is not cut off."""
        if not self._cut_file.exists():
            return
        cut = json.loads(self._cut_file.read_text())
        links = json.loads(_on_host_network(self.image, "ip", "-json", "link", "show"))
        # After a reboot the VPS has a new cable, which is plugged in.
        if cut["port"] in [link["ifname"] for link in links]:
            _on_host_network(self.image, "ip", "link", "set", "dev", cut["port"], "master", cut["bridge"])
        self._cut_file.unlink()

    def outsider(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command (nmap, curl, python3 are there) in a stranger's container on the lab's network."""
        image = docker("container", "inspect", "--format", "{{.Config.Image}}", DNS_CONTAINER).stdout.strip()
        return docker("run", "--rm", "--label=prefect-lab", f"--network={NETWORK}", image, *command, check=check)


def _on_host_network(image: str, *command: str) -> str:
    """Run a command in the machine's own network, with the rights and the tools of a container."""
    options = ["--rm", "--label=prefect-lab", "--network=host", "--cap-add=NET_ADMIN"]
    return docker("run", *options, image, *command).stdout


def _make_cgroup(directory: str) -> None:
    """On a hybrid host, the control group that is bound into a VPS: it is gone when the machine has rebooted."""
    cgroups = cgroup_layout()
    if cgroups.layout == "hybrid" and os.access(cgroups.root, os.W_OK):
        (cgroups.root / directory).mkdir(exist_ok=True)


def _remove_cgroups(directory: str) -> None:
    """Remove the empty control groups that a VPS leaves on a hybrid host."""
    cgroups = cgroup_layout()
    if cgroups.layout == "hybrid":
        tree = cgroups.root / directory
        for path in sorted((path for path in tree.rglob("*") if path.is_dir()), reverse=True):
            path.rmdir()
        if tree.is_dir():
            tree.rmdir()


def all_vps() -> list[Vps]:
    """Every VPS of the lab on this machine, by name."""
    found = docker("ps", "--all", f"--filter=label={LABEL}", "--format", f'{{{{.Label "{LABEL}"}}}}')
    return [Vps(name) for name in sorted(set(found.stdout.split()))]


def down_all() -> None:
    """Remove every VPS, what an interrupted run left of one, and the network with all that is on it."""
    found = docker("volume", "ls", f"--filter=label={LABEL}", "--format", f'{{{{.Label "{LABEL}"}}}}')
    for name in sorted({*(vps.name for vps in all_vps()), *found.stdout.split()}):
        with step(f"removing the VPS {name}"):
            Vps(name).down()
    _remove_network()
