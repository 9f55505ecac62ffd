"""The role host: who gets in, by which ports, and how the host keeps itself."""

from __future__ import annotations

import shlex
import subprocess

import pytest

from tests.lab.restores import until

OPEN_PORTS = {22, 80, 443}
# A package of the lab's own ($1: its version), and a list of packages that names it.
PENDING = """
set -eu
mkdir --parents /srv/lab-updates/$1/DEBIAN && cd /srv/lab-updates
printf 'Package: lab-update\\nVersion: %s\\nArchitecture: all\\nMaintainer: lab\\nDescription: nothing\\n' "$1" > $1/DEBIAN/control
dpkg-deb --build $1 lab-update_$1.deb > /dev/null
{ cat $1/DEBIAN/control; printf 'Filename: ./lab-update_%s.deb\\nSize: %s\\nSHA256: %s\\n' "$1" \\
  "$(stat --format=%s lab-update_$1.deb)" "$(sha256sum lab-update_$1.deb | cut -d' ' -f1)"; } > Packages
echo 'deb [trusted=yes] file:/srv/lab-updates ./' > /etc/apt/sources.list.d/lab-updates.list
"""


def test_only_ssh_and_the_proxy_are_open_from_outside(vps, host):
    """All 65,535 TCP ports and the UDP ports that something listens on, seen by a stranger on the same network."""
    # A port that Docker publishes by NAT, past every usual filter, and one that a host process listens on.
    vps.ssh("docker run --detach --rm --name stray --publish 8123:8123 $(docker images -q caddy | head -1) sleep 300")
    vps.ssh("systemd-run --unit stray-listener --collect python3 -m http.server 8124")
    try:
        host.run_expect([0], "timeout 10 sh -c 'until ss -Hltn sport = :8124 | grep -q 8124; do sleep 0.2; done'")
        assert host.socket("tcp://0.0.0.0:8123").is_listening
        said = vps.outsider("nmap", "-Pn", "-n", "-p-", "-T4", "--min-rate=3000", "-oG", "-", vps.address).stdout
    finally:
        vps.ssh("docker rm --force stray; systemctl stop stray-listener")
    found = {int(entry.split("/")[0]) for entry in said.split("Ports: ")[1].split(", ") if "/open/tcp" in entry}
    assert found == OPEN_PORTS


def test_nothing_of_the_stack_listens_but_the_proxy(host):
    """Every TCP listener of the host is loopback, sshd, or Docker's proxy for Caddy."""
    lines = host.check_output("ss --no-header --listening --numeric --tcp --processes").splitlines()
    public = {}
    for line in lines:
        address, process = line.split()[3], line.split()[-1]
        if not address.startswith(("127.", "[::1]")):
            public[int(address.rsplit(":", 1)[1])] = process
    assert set(public) == OPEN_PORTS, public
    assert "sshd" in public[22] or "systemd" in public[22]
    assert "docker-proxy" in public[80] and "docker-proxy" in public[443]


def test_the_firewall_lets_docker_be(host):
    """Our rules are a table of their own; Docker's stay, and Debian's flushing unit does not run."""
    tables = host.check_output("nft list tables")
    assert "table inet prefect" in tables
    assert not host.service("nftables.service").is_running
    assert host.service("prefect-firewall.service").is_enabled
    before = host.check_output("nft list ruleset | grep -c DOCKER || iptables -S | grep -c DOCKER")
    host.run_expect([0], "systemctl reload prefect-firewall")
    assert host.check_output("nft list ruleset | grep -c DOCKER || iptables -S | grep -c DOCKER") == before
    assert host.check_output("nft list table inet prefect").count("ct state invalid drop") == 1


def asked(host, address, port, within=""):
    """What somebody gets who connects to a port from the host, after some words that make him another user."""
    rc = host.run(f"{within} timeout 3 bash -c '< /dev/tcp/{address}/{port}'").rc
    return {0: "open", 1: "refused", 124: "silent"}[rc]


def asked_in_container(host, url, words):
    """The same in a container, where only curl is: it is begun by these words."""
    rc = host.run(f"{words} curl --silent --insecure --noproxy '*' --output /dev/null --max-time 3 {url}").rc
    # A server of another protocol answers, too (1, 52, 56).
    return {7: "refused", 28: "silent"}.get(rc, "open" if rc in (0, 1, 52, 56) else rc)


def test_containers_reach_the_proxy_and_nothing_else_of_the_host(vps, host):
    """Caddy nothing at all; others what is open to everybody. At the host's address in their network, and at its public one."""
    image = host.check_output("docker inspect --format '{{.Config.Image}}' prefect-caddy")
    gateway = "docker network inspect --format '{{(index .IPAM.Config 0).Gateway}}'"
    edge, default = host.check_output(f"{gateway} prefect_edge"), host.check_output(f"{gateway} bridge")
    caddy, other = "docker exec prefect-caddy", f"docker run --rm --network bridge {image}"
    for address, words in ((edge, caddy), (vps.address, caddy), (default, other)):
        assert asked(host, address, 22) == "open"
        assert asked_in_container(host, f"http://{address}:22", words) == "refused", address
    assert asked_in_container(host, f"https://{edge}", caddy) == "refused"
    assert asked_in_container(host, f"https://{default}", other) == "open"


def test_the_clouds_metadata_answer_root_alone(host):
    """A container of a network of others' is the cloud. Its port 53 stands for the name server that some clouds have there."""
    cloud, names = "169.254.169.254", "169.254.169.253"
    host.run_expect([0], "docker network create --subnet 169.254.0.0/16 lab-cloud")
    try:
        for address, port in ((cloud, 80), (names, 53)):
            host.run_expect(
                [0],
                f"docker run --detach --rm --label lab-cloud --network lab-cloud --ip {address} --user 0 --entrypoint python"
                f" $(docker inspect --format '{{{{.Config.Image}}}}' prefect-server) -m http.server {port}",
            )
        for address, port in ((cloud, 80), (names, 53)):
            until(f"{address} answers root", lambda a=address, p=port: asked(host, a, p).replace("open", ""))
        for within in (
            "runuser -u prefect_general-1 --",
            "systemd-run --quiet --collect --wait --pipe --property=DynamicUser=yes",
        ):
            assert asked(host, cloud, 80, within) == "refused"
            assert asked(host, names, 53, within) == "open"
        assert asked_in_container(host, f"http://{cloud}", "docker exec prefect-caddy") == "refused"
    finally:
        host.run("docker rm --force $(docker ps --quiet --filter label=lab-cloud); docker network rm lab-cloud")


def test_a_broken_rule_file_opens_nothing(host):
    """Neither a reload nor a restart; when the file is right again, a restart is a restart."""
    rules, kept = "/etc/nftables.d/prefect.nft", "/root/prefect.nft"
    before = host.check_output("nft --stateless list table inet prefect")
    host.run_expect([0], f"cp --archive {rules} {kept} && echo 'table inet prefect {{ chain' >> {rules}")
    try:
        for verb in ("reload", "restart", "stop"):
            assert host.run(f"systemctl {verb} prefect-firewall").rc == (0 if verb == "stop" else 1), verb
            assert host.check_output("nft --stateless list table inet prefect") == before, verb
    finally:
        host.run_expect([0], f"mv {kept} {rules} && systemctl restart prefect-firewall")
    assert host.check_output("nft --stateless list table inet prefect") == before
    assert host.service("prefect-firewall.service").is_running


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("passwordauthentication", "no"),
        ("kbdinteractiveauthentication", "no"),
        ("permitrootlogin", "without-password"),
        ("x11forwarding", "no"),
        ("allowagentforwarding", "no"),
        ("allowtcpforwarding", "no"),
        ("allowstreamlocalforwarding", "no"),
        ("persourcenetblocksize", "32:64"),
    ],
)
def test_sshd_takes_keys_only(host, key, value):
    settings = dict(line.split(" ", 1) for line in host.check_output("sshd -T").splitlines() if " " in line)
    assert settings[key] == value


def test_sshd_offers_nothing_weak(host):
    settings = dict(line.split(" ", 1) for line in host.check_output("sshd -T").splitlines() if " " in line)
    assert {name.partition("-etm@")[0] for name in settings["macs"].split(",")} <= {
        "hmac-sha2-256",
        "hmac-sha2-512",
        "umac-128",
    }
    assert all("25519" in name or name.endswith("sha512") for name in settings["kexalgorithms"].split(","))
    assert "cbc" not in settings["ciphers"]


def test_sshd_offers_no_password_from_outside(vps):
    options = ["-o", f"UserKnownHostsFile={vps.known_hosts}", "-o", "PubkeyAuthentication=no", "-o", "BatchMode=yes"]
    done = subprocess.run(
        ["ssh", "-F", "/dev/null", *options, f"root@{vps.address}", "true"], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 255
    assert "Permission denied (publickey)" in done.stderr


def test_the_administrator_logs_in_by_key_and_may_sudo(vps):
    done = subprocess.run(vps.ssh_command("sudo -n id -u", user="ops"), capture_output=True, text=True, timeout=30)
    assert done.stdout.strip() == "0", done.stderr
    assert vps.ssh("passwd --status ops").stdout.split()[1] == "L"


def test_time_is_kept(host):
    assert host.service("systemd-timesyncd.service").is_enabled
    assert host.check_output("readlink -f /etc/localtime") == "/usr/share/zoneinfo/Etc/UTC"


def test_security_updates_come_by_themselves_with_a_reboot_window(host):
    for timer in ("apt-daily.timer", "apt-daily-upgrade.timer"):
        assert host.service(timer).is_enabled and host.service(timer).is_running
    settings = host.check_output("apt-config dump")
    assert 'APT::Periodic::Unattended-Upgrade "1";' in settings
    assert 'Unattended-Upgrade::Automatic-Reboot "true";' in settings
    assert 'Unattended-Upgrade::Automatic-Reboot-Time "03:30";' in settings
    host.run_expect([0], "unattended-upgrade --dry-run")


def test_pending_updates_are_installed_with_the_workers_drained(vps, playbook, host):
    """upgrade.yml --tags host: a backup, the workers stopped meanwhile, and nothing where nothing is pending."""
    vps.ssh(f"sh -c {shlex.quote(PENDING)} _ 1 && dpkg --install /srv/lab-updates/lab-update_1.deb")
    vps.ssh(f"sh -c {shlex.quote(PENDING)} _ 2")
    started = "systemctl show --property=ActiveEnterTimestampMonotonic --value prefect-worker@general-1"
    try:
        before = host.check_output(started)
        done = playbook("upgrade.yml", "--tags", "host")
        assert "update lab-update" in done.joined
        assert host.package("lab-update").version == "2"
        assert int(host.check_output(started)) > int(before)
        again = playbook("upgrade.yml", "--tags", "host")
        assert again.recap["changed"] == 0
        assert "Nothing is pending." in again.joined
    finally:
        vps.ssh(
            "dpkg --purge lab-update; rm -r /srv/lab-updates /etc/apt/sources.list.d/lab-updates.list; apt-get update"
        )


def test_the_journal_is_bounded_and_survives_a_boot(host):
    settings = host.check_output("systemd-analyze cat-config systemd/journald.conf")
    assert "SystemMaxUse=1G" in settings and "Storage=persistent" in settings
    assert host.file("/var/log/journal").is_directory


def test_extra_authorities_are_trusted(host, inventory_variables):
    for path in inventory_variables["host_extra_ca_certificates"]:
        name = path.rsplit("/", 1)[1]
        assert host.file(f"/usr/local/share/ca-certificates/{name}").exists
        assert host.run(f"ls -l /etc/ssl/certs | grep -F {name}").rc == 0


def test_no_unit_has_failed(host):
    assert host.check_output("systemctl --failed --plain --no-legend") == ""
