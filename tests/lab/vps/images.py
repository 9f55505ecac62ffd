"""The images of the lab: official ones where a registry answers, else stand-ins built from packages.

The stand-ins carry the official names and tags, and keep the official images' contract (entrypoint, environment,
volumes, ports, users) as far as compose.yml relies on it. They reach a VPS as an archive (`prefect_images_archive`).
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import snapshot
from .engine import client, docker
from .shell import LabError, apt_install, cache_directory, locked, run, say, step

HERE = Path(__file__).parent / "images"
SUITE = "trixie"
OFFICIAL_BASE = f"debian:{SUITE}"

# Held equal to ansible/roles/prefect by a unit test. PostgreSQL's is Debian 13's version on the day it was pinned; when
# Debian has moved on, the stand-in holds the newer minor version under the pinned tag.
POSTGRES = "postgres:17.12-trixie"
#: The Postgres that a host's is upgraded to.
POSTGRES_NEXT = "postgres:18.6-trixie"
CADDY = "caddy:2.11.7"
#: The version of Prefect that a new host gets, and an older one that the kit supports, from which a host is upgraded.
NEWEST, EARLIER = "3.9.1", "3.8.8"
# A root file system without documentation and translations: the layer that all stand-ins share.
MMDEBSTRAP = (
    "mmdebstrap",
    "--variant=minbase",
    "--include=ca-certificates",
    *(
        f"--dpkgopt=path-{verb}=/usr/share/{what}"
        for verb, what in (
            ("exclude", "doc/*"),
            ("include", "doc/*/copyright"),
            ("exclude", "man/*"),
            ("exclude", "info/*"),
            ("exclude", "locale/*"),
            ("include", "locale/locale.alias"),
        )
    ),
    SUITE,
)
# Proxy settings of this machine, which docker build takes as arguments without keeping them in the image.
PROXY_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")

SOURCES = ("auto", "official", "stand-ins")
# Beside the current ones: one of before each.
KEPT_ARCHIVES = 3
ARCHIVE_NAME = re.compile(r"images-[0-9a-f]{16}\.tar\.zst")
# In an order in which they can be removed.
OWN_IMAGES = ("outsider", "vps", "builder", "rootfs")
OWN_IMAGE = re.compile(rf"prefect-lab/({'|'.join(OWN_IMAGES)}):[0-9a-f]{{16}}")
CONTENT_LABEL = "prefect-lab.content"


@dataclass(frozen=True)
class LabImages:
    """What the lab runs on: names of the images of the VPS and of what else is on its network, the version of Prefect that
    a VPS is provisioned with, and the archive of the stack's images, which is None where the official ones can be pulled
    (`source`: official or stand-ins).
    """

    source: str
    vps: str
    outsider: str
    archive: Path | None
    prefect: str = NEWEST


def prefect_image(version: str) -> str:
    """Name of Prefect's official image of a version."""
    return f"prefecthq/prefect:{version}-python3.13"


def stack(version: str = NEWEST) -> dict[str, str]:
    """The images of the stack with this Prefect, by the folder of the stand-in."""
    return {"postgres": POSTGRES, "caddy": CADDY, "prefect": prefect_image(version)}


def next_postgres() -> dict[str, str]:
    """The image that a host's Postgres is upgraded to, by the folder of the stand-in."""
    return {"postgres18": POSTGRES_NEXT}


def stacks() -> list[dict[str, str]]:
    """The images of each archive that this state of the kit has, by the folder of the stand-in."""
    return [stack(NEWEST), stack(EARLIER), next_postgres()]


# --- decisions -------------------------------------------------------------------------------------------------


def choose_source(setting: str, registry_answers: bool) -> str:
    """`official` or `stand-ins`, from the setting (PREFECT_LAB_IMAGES) and what pulling the base image gave."""
    if setting not in SOURCES:
        allowed = ", ".join(SOURCES)
        raise LabError(f'PREFECT_LAB_IMAGES is "{setting}"; allowed: {allowed}', "unset PREFECT_LAB_IMAGES")
    if setting == "stand-ins":
        return setting
    if registry_answers:
        return "official"
    if setting == "official":
        raise LabError(
            f'PREFECT_LAB_IMAGES is "official", and the image "{OFFICIAL_BASE}" could not be pulled',
            f"docker pull {OFFICIAL_BASE}, or unset PREFECT_LAB_IMAGES to build stand-ins from packages",
        )
    return "stand-ins"


def content_hash(folders: Iterable[Path], words: Sequence[str] = (), files: Iterable[Path] = ()) -> str:
    """16 hexadecimal digits that change with any file below the folders (name, executable bit, content), with any
    of the files (name, content) and with any of the words. What an editor or Python leaves there does not count.
    """
    total = hashlib.sha256()

    def add(label: str, content: bytes) -> None:
        for part in (label.encode(), content):
            total.update(len(part).to_bytes(8, "big") + part)

    for word in words:
        add("word", word.encode())
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts and not path.name.endswith(("~", ".swp")):
                executable = "x" if path.stat().st_mode & 0o100 else "-"
                add(f"{folder.name}/{path.relative_to(folder)} {executable}", path.read_bytes())
    for path in files:
        add(path.name, path.read_bytes())
    return total.hexdigest()[:16]


def superseded(names: Sequence[str], current: Iterable[str] = (), keep: int = KEPT_ARCHIVES) -> list[str]:
    """Of archive names, newest first, those to remove: none of `current`, and of the others all but the first `keep`.
    Only names that are exactly an archive's count.
    """
    kept = set(current)
    return [name for name in names if ARCHIVE_NAME.fullmatch(name) and name not in kept][keep:]


def extra_ca_certificates() -> list[Path]:
    """CA certificates that this machine's administrator added: without them no index answers behind a proxy."""
    return sorted(Path("/usr/local/share/ca-certificates").rglob("*.crt"))


def rootfs_image() -> str:
    """Name of the image that all the others are made from where no registry answers."""
    return f"prefect-lab/rootfs:{content_hash([], [*MMDEBSTRAP, platform.machine()])}"


def builder_image() -> str:
    """Name of the workshop's image; it holds the machine's own CA certificates."""
    return f"prefect-lab/builder:{content_hash([HERE / 'builder'], [rootfs_image()], extra_ca_certificates())}"


def stand_in_hash(name: str, image: str) -> str:
    """The hash of all that a stand-in is made of."""
    return content_hash([HERE / name], [image, rootfs_image(), builder_image()])


def archive_path(wanted: dict[str, str]) -> Path:
    """Where the archive of these stand-ins (image by folder) is, or will be; its name follows their content."""
    contents = [stand_in_hash(name, image) for name, image in wanted.items()]
    return cache_directory() / f"images-{content_hash([], contents)}.tar.zst"


# --- doing -----------------------------------------------------------------------------------------------------


def _exists(image: str, content: str | None = None) -> bool:
    query = "{{.Id}}" if content is None else f'{{{{index .Config.Labels "{CONTENT_LABEL}"}}}}'
    done = docker("image", "inspect", "--format", query, image, check=False)
    return done.returncode == 0 and (content is None or done.stdout.strip() == content)


def _build(image: str, folder: Path, content: str, files: Iterable[Path] = (), **arguments: str) -> None:
    """Build an image from a folder, with `files` beside it in extra-ca/."""
    with step(f"building {image}"), tempfile.TemporaryDirectory(prefix="prefect-lab-") as directory:
        context = Path(directory) / "context"
        shutil.copytree(folder, context)
        (context / "extra-ca").mkdir()
        for path in files:
            shutil.copy(path, context / "extra-ca")
        words = [f"--build-arg={name}={value}" for name, value in arguments.items()]
        words += [f"--build-arg={name}" for name in PROXY_VARIABLES if os.environ.get(name)]
        docker(
            "build",
            "--quiet",
            "--force-rm",
            f"--label={CONTENT_LABEL}={content}",
            *words,
            f"--tag={image}",
            str(context),
        )


def _ensure_rootfs() -> str:
    image = rootfs_image()
    if _exists(image):
        return image
    if not shutil.which("mmdebstrap"):
        apt_install(["mmdebstrap", "debian-archive-keyring"], "Building Debian 13 from packages")
    with step(f"building a Debian {SUITE} root file system"), tempfile.TemporaryDirectory() as directory:
        archive = Path(directory) / "rootfs.tar"
        run([*MMDEBSTRAP, str(archive)])
        docker("import", str(archive), image)
    return image


def _ensure_stand_ins(wanted: dict[str, str], version: str = NEWEST) -> Path:
    """Make the archive of these stand-ins (image by folder; with this Prefect, if any), building what has changed, or
    take it from the cache.
    """
    archive = archive_path(wanted)
    if not archive.exists():
        rootfs, builder = _ensure_rootfs(), builder_image()
        for name, image in wanted.items():
            content = stand_in_hash(name, image)
            if _exists(image, content):
                continue
            if not _exists(builder):
                _build(builder, HERE / "builder", builder, extra_ca_certificates(), ROOTFS=rootfs)
            # The others do not ask for it.
            _build(image, HERE / name, content, ROOTFS=rootfs, BUILDER=builder, LOCK=f"prefect-{version}.txt")
        _pack(archive, list(wanted.values()))
    # The oldest archives are removed by when they were last asked for.
    os.utime(archive)
    return archive


def _pack(archive: Path, names: list[str]) -> None:
    """Save the stand-ins to an archive, whole or not at all.

    Compressed: 150 MB instead of 500, which a playbook reads four times and copies once for each host (measured on
    two busy cores: 26 s to copy the tar; packing costs 3 s once, and loading takes the same 6 s).
    """
    if not shutil.which("zstd"):
        apt_install(["zstd"], "Packing the images")
    temporary = archive.with_suffix(".tmp")
    with step(f"packing the images into {archive}"), temporary.open("wb") as stream:
        saving = subprocess.Popen([client(), "save", *names], stdout=subprocess.PIPE)
        packing = subprocess.run(["zstd", "--quiet", "--threads=0", "-3"], stdin=saving.stdout, stdout=stream)
        if saving.stdout:
            saving.stdout.close()
        if saving.wait() or packing.returncode:
            raise LabError(f'the images could not be packed into "{temporary}"', f"df -h {archive.parent}")
        os.fsync(stream.fileno())
    temporary.rename(archive)


def _registry_answers(setting: str) -> bool:
    # A lab that has built its stand-ins stays with them: a registry that drops packets would cost a minute each time.
    if setting == "stand-ins" or (setting == "auto" and any(archive_path(one).exists() for one in stacks())):
        return False
    return _exists(OFFICIAL_BASE) or docker("pull", "--quiet", OFFICIAL_BASE, check=False, timeout=600).returncode == 0


def _remove_old(current: set[str]) -> None:
    """Remove archives and images of the lab that newer content has replaced."""
    archives = sorted(cache_directory().glob("images-*.tar.zst"), key=lambda path: -path.stat().st_mtime)
    for name in superseded([path.name for path in archives], [archive_path(one).name for one in stacks()]):
        say(f"removing {name} from the cache: its content has been replaced")
        (cache_directory() / name).unlink()
    for half_made in cache_directory().glob("images-*.tmp"):
        half_made.unlink()
    _remove_own(current)


def _remove_own(current: set[str]) -> None:
    """Remove the lab's images but those in `current`. One that a VPS still uses stays: docker refuses."""
    # Nameless ones: what stood under a stand-in's name before, and the workshops' results.
    docker("image", "prune", "--force", f"--filter=label={CONTENT_LABEL}")
    ours = {image: own[1] for image in _listed() if (own := OWN_IMAGE.fullmatch(image)) and image not in current}
    # One that others are made from is refused while they are there.
    for image in sorted(ours, key=lambda image: OWN_IMAGES.index(ours[image])):
        docker("image", "rm", image, check=False)


def _listed() -> list[str]:
    return docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}").stdout.split()


def remove_all() -> None:
    """Remove every snapshot, every image that the lab built and every archive: for after `down --all`."""
    snapshot.remove_all()
    with locked("images"):
        for image in {image for one in stacks() for image in one.values()}:
            # One that somebody pulled has no label of ours.
            if docker("image", "ls", "--quiet", f"--filter=label={CONTENT_LABEL}", image).stdout.strip():
                docker("image", "rm", image, check=False)
        _remove_own(current=set())
        for path in cache_directory().glob("images-*.t*"):
            path.unlink()


def ensure_images(version: str = NEWEST) -> LabImages:
    """Make sure that all images of a lab with this Prefect are there; seconds when they are. Needs a running engine."""
    setting = os.environ.get("PREFECT_LAB_IMAGES", "auto")
    with locked("images"):
        source = choose_source(setting, _registry_answers(setting))
        if source == "official":
            base, archive = OFFICIAL_BASE, None
        else:
            base, archive = _ensure_rootfs(), _ensure_stand_ins(stack(version), version)
        vps = _ensure_own("vps", base)
        outsider = _ensure_own("outsider", vps)
        _remove_old({base, vps, outsider, builder_image()})
        return LabImages(source=source, vps=vps, outsider=outsider, archive=archive, prefect=version)


def ensure_postgres_next() -> Path | None:
    """The archive of POSTGRES_NEXT alone, made within a minute where it is not there; None where the official image
    can be pulled. Needs a running engine. Raises LabError.
    """
    setting = os.environ.get("PREFECT_LAB_IMAGES", "auto")
    with locked("images"):
        if choose_source(setting, _registry_answers(setting)) == "official":
            return None
        return _ensure_stand_ins(next_postgres())


def _ensure_own(name: str, base: str) -> str:
    content = content_hash([HERE / name], [base])
    image = f"prefect-lab/{name}:{content}"
    if not _exists(image):
        _build(image, HERE / name, content, BASE=base)
    return image
