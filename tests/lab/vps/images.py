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
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .engine import docker
from .shell import LabError, apt_install, cache_directory, locked, run, say, step

HERE = Path(__file__).parent / "images"
SUITE = "trixie"
OFFICIAL_BASE = f"debian:{SUITE}"

# Held equal to ansible/roles/prefect/defaults/main.yml by a unit test. PostgreSQL's is Debian 13's version on the
# day it was pinned; when Debian has moved on, the stand-in holds the newer minor version under the pinned tag.
IMAGES = {
    "postgres": "postgres:17.12-trixie",
    "caddy": "caddy:2.11.7",
    "prefect": "prefecthq/prefect:3.8.8-python3.13",
}
# The workshop comes first: two of the others copy from it.
STAND_IN_FOLDERS = ("builder", "postgres", "caddy", "prefect")

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
KEPT_ARCHIVES = 2
ARCHIVE_NAME = re.compile(r"images-[0-9a-f]{16}\.tar")
OWN_IMAGE = re.compile(r"prefect-lab/(vps|outsider|builder|rootfs):[0-9a-f]{16}")
CONTENT_LABEL = "prefect-lab.content"


@dataclass(frozen=True)
class LabImages:
    """What the lab runs on: names of the images of the VPS and of what else is on its network, and the archive of
    the stack's images, which is None where the official ones can be pulled (`source`: official or stand-ins).
    """

    source: str
    vps: str
    outsider: str
    archive: Path | None


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


def superseded(names: Sequence[str], keep: int = KEPT_ARCHIVES) -> list[str]:
    """Of archive names, newest first, those to remove. Only names that are exactly an archive's count."""
    return [name for name in names if ARCHIVE_NAME.fullmatch(name)][keep:]


def extra_ca_certificates() -> list[Path]:
    """CA certificates that this machine's administrator added: without them no index answers behind a proxy."""
    return sorted(Path("/usr/local/share/ca-certificates").rglob("*.crt"))


def stand_in_hash() -> str:
    """The hash of all that the stand-ins are made of."""
    words = [*MMDEBSTRAP, *IMAGES.values(), platform.machine()]
    return content_hash([HERE / name for name in STAND_IN_FOLDERS], words, extra_ca_certificates())


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
        docker("build", "--quiet", f"--label={CONTENT_LABEL}={content}", *words, f"--tag={image}", str(context))


def _ensure_rootfs() -> str:
    image = f"prefect-lab/rootfs:{content_hash([], [*MMDEBSTRAP, platform.machine()])}"
    if _exists(image):
        return image
    if not shutil.which("mmdebstrap"):
        apt_install(["mmdebstrap", "debian-archive-keyring"], "Building Debian 13 from packages")
    with step(f"building a Debian {SUITE} root file system"), tempfile.TemporaryDirectory() as directory:
        archive = Path(directory) / "rootfs.tar"
        run([*MMDEBSTRAP, str(archive)])
        docker("import", str(archive), image)
    return image


def _ensure_stand_ins() -> Path:
    """Build the stand-ins, or take them from the cache; gives the archive that holds the three."""
    content = stand_in_hash()
    archive = cache_directory() / f"images-{content}.tar"
    in_engine = all(_exists(image, content) for image in IMAGES.values())
    if archive.exists() and not in_engine:
        with step(f"loading the images from {archive}"):
            docker("load", "--quiet", "--input", str(archive))
    elif not in_engine:
        rootfs = _ensure_rootfs()
        builder = f"prefect-lab/builder:{content}"
        _build(builder, HERE / "builder", content, extra_ca_certificates(), ROOTFS=rootfs)
        for name, image in IMAGES.items():
            _build(image, HERE / name, content, ROOTFS=rootfs, BUILDER=builder)
    if not archive.exists():
        with step(f"saving the images to {archive}"):
            temporary = archive.with_suffix(".tmp")
            docker("save", "--output", str(temporary), *IMAGES.values())
            with temporary.open("rb") as stream:
                os.fsync(stream.fileno())
            temporary.rename(archive)
    os.utime(archive)
    return archive


def _registry_answers(setting: str) -> bool:
    if setting == "stand-ins":
        return False
    return _exists(OFFICIAL_BASE) or docker("pull", "--quiet", OFFICIAL_BASE, check=False, timeout=600).returncode == 0


def _remove_old(current: set[str]) -> None:
    """Remove archives and images of the lab that newer content has replaced."""
    archives = sorted(cache_directory().glob("images-*.tar"), key=lambda path: -path.stat().st_mtime)
    for name in superseded([path.name for path in archives]):
        say(f"removing {name} from the cache: its content has been replaced")
        (cache_directory() / name).unlink()
    for half_made in cache_directory().glob("images-*.tmp"):
        half_made.unlink()
    for image in docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}").stdout.split():
        if OWN_IMAGE.fullmatch(image) and image not in current:
            # An image that a VPS still uses stays: docker refuses.
            docker("image", "rm", image, check=False)


def remove_all() -> None:
    """Remove every image of the lab from the engine and every archive from the cache, as after `down --all`."""
    with locked("images"):
        ours = [image for image in IMAGES.values() if _label(image)]
        listed = docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}").stdout.split()
        # Those made from others first, or docker refuses.
        ours += sorted(filter(OWN_IMAGE.fullmatch, listed), key=lambda image: ORDER_OF_REMOVAL.index(image[12:15]))
        for image in ours:
            docker("image", "rm", image, check=False)
        docker("image", "prune", "--force", f"--filter=label={CONTENT_LABEL}")
        for path in [*cache_directory().glob("images-*.tar"), *cache_directory().glob("images-*.tmp")]:
            path.unlink()


def ensure_images() -> LabImages:
    """Make sure that all images of the lab are there; seconds when they are. Needs a running engine."""
    setting = os.environ.get("PREFECT_LAB_IMAGES", "auto")
    with locked("images"):
        source = choose_source(setting, _registry_answers(setting))
        if source == "official":
            base, archive = OFFICIAL_BASE, None
        else:
            base, archive = _ensure_rootfs(), _ensure_stand_ins()
        vps = _ensure_own("vps", base)
        outsider = _ensure_own("outsider", vps)
        _remove_old({base, vps, outsider, f"prefect-lab/builder:{stand_in_hash()}"})
        return LabImages(source=source, vps=vps, outsider=outsider, archive=archive)


def _ensure_own(name: str, base: str) -> str:
    content = content_hash([HERE / name], [base])
    image = f"prefect-lab/{name}:{content}"
    if not _exists(image):
        _build(image, HERE / name, content, BASE=base)
    return image


def remove_all() -> None:
    """Remove every image that the lab built from this machine's engine. Official ones stay."""
    docker("container", "prune", "--force", "--filter=label=prefect-lab", check=False)
    for image in docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}").stdout.split():
        if OWN_IMAGE.fullmatch(image) or (image in IMAGES.values() and _exists(image, stand_in_hash())):
            docker("image", "rm", "--force", image, check=False)
