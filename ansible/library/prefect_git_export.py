#!/usr/bin/python
"""Ansible module: the files of one commit of a git repository."""

from __future__ import annotations

DOCUMENTATION = r"""
module: prefect_git_export
short_description: The files of one commit, without git's own
description:
  - Fetches O(ref) of O(repository), and unpacks the files of that commit below O(dest), as C(git archive) gives them;
    submodules are left out, and named. It never asks for a password.
  - Not M(ansible.builtin.git), which gives a working copy, and for a ref that is not there the words of git.
options:
  repository:
    description: Address or path of the repository, as C(git clone) takes it.
    type: str
    required: true
  ref:
    description: Branch, tag or commit.
    type: str
    required: true
  dest:
    description: Directory that is there and empty.
    type: path
    required: true
author:
  - the prefect self-hosting kit
"""

EXAMPLES = r"""
- name: Take version 1.2 of the flows
  prefect_git_export:
    repository: git@git.example.org:team/flows.git
    ref: v1.2
    dest: /tmp/flows
"""

RETURN = r"""
commit:
  description: The commit's hash.
  type: str
  returned: always
subject:
  description: The first line of its message.
  type: str
  returned: always
submodules:
  description: Paths of its submodules, which are left out.
  type: list
  returned: always
"""

import posixpath  # noqa: E402
import re  # noqa: E402
import shutil  # noqa: E402
import tarfile  # noqa: E402
import tempfile  # noqa: E402
from pathlib import Path  # noqa: E402

from ansible.module_utils.basic import AnsibleModule  # noqa: E402

# An account in an address, of which a token or a password is part more often than not: everybody on this machine would
# read it in the list of processes, and everybody on the server in the history of releases.
ACCOUNT = re.compile(r"://[^/?#]*@")
# ssh needs a user, and gets its key elsewhere.
SSH_ACCOUNT = re.compile(r"^\s*(git\+)?ssh://[^/@:]+@", re.IGNORECASE)
# user:password@host:path, as if it were ssh's short form.
SHORT_PASSWORD = re.compile(r"^\s*[^/@:\s]+:[^/@]+@")
QUERY = re.compile(r"[?&][^=&]*(token|password|passwd|secret|key)[^=&]*=", re.IGNORECASE)
EVERYTHING = "+refs/*:refs/kit/*"


def has_credential(repository: str) -> bool:
    """Whether an address carries something that only its owner should know."""
    if SHORT_PASSWORD.search(repository) or QUERY.search(repository):
        return True
    return bool(ACCOUNT.search(repository)) and not SSH_ACCOUNT.match(repository)


def refusal(repository: str, ref: str) -> str | None:
    """Why git must not even be asked, or None."""
    if has_credential(repository):
        shown = re.sub(
            r"\?.*", "?***", re.sub(r"^\s*[^/@:\s]+:[^/@]+@", "***@", re.sub(r"//[^/]*@", "//***@", repository))
        )
        return (
            f'Refusing to use "{shown}": it has an account or a credential in it, which would be seen in the list of '
            "processes, in what the playbook prints and on the server. Use ssh (git@HOST:PATH) with a key, or give it to "
            "git on this machine: git config --global credential.helper store, then git ls-remote with the address "
            "without it, which asks for it once."
        )
    if repository.startswith("-") or not repository.strip():
        return f'"{repository}" is no address of a git repository'
    if not re.fullmatch(r"[^\s\x00-\x1f~^:?*\[\\-][^\s\x00-\x1f~^:?*\[\\]*", ref):
        return f'"{ref}" is no branch, tag or commit'
    return None


def candidates(ref: str) -> list[str]:
    """Where a ref may be once everything has been fetched: git's own order (git help revisions)."""
    return [f"refs/kit/tags/{ref}", f"refs/kit/heads/{ref}", f"refs/kit/{ref.removeprefix('refs/')}", ref]


def leads_out(name: str, target: str) -> bool:
    """Whether a link of that name, to that target, leads out of the directory that it is unpacked in."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(name), target))
    return path == ".." or path.startswith(("../", "/"))


def unpack(module: AnsibleModule, archive: Path, dest: str) -> None:
    """Unpack an archive, links that lead out of it refused: a release must not carry files of this machine away."""
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.issym() and leads_out(member.name, member.linkname):
                module.fail_json(msg=f'Refusing "{member.name}": it is a link to "{member.linkname}", outside')
        # git wrote the archive, and has no names that lead out of it.
        tar.extractall(dest)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "repository": {"type": "str", "required": True},
            "ref": {"type": "str", "required": True},
            "dest": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    repository, ref, dest = (module.params[name] for name in ("repository", "ref", "dest"))
    if refused := refusal(repository, ref):
        module.fail_json(msg=refused)
    git = [module.get_bin_path("git", required=True)]
    work = tempfile.mkdtemp(prefix="prefect-git-", dir=module.tmpdir)
    try:
        # Whoever wrote the repository decides about its content, not about what runs here: no hooks, no helpers.
        git += ["-C", work, "-c", "core.hooksPath=/dev/null", "-c", "advice.detachedHead=false"]
        module.run_command_environ_update = {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
        module.run_command([*git, "init", "--quiet", "--bare"], check_rc=True)
        local = Path(repository).expanduser().resolve()
        where = str(local) if local.is_dir() else repository
        # One commit is enough, where the server gives one by that name.
        code, _, _ = module.run_command([*git, "fetch", "--quiet", "--depth", "1", "--no-tags", where, ref])
        found = ["FETCH_HEAD"]
        if code:
            code, _, said = module.run_command([*git, "fetch", "--quiet", "--no-tags", where, EVERYTHING])
            if code:
                module.fail_json(msg=f'git cannot read "{repository}": {" ".join(said.split())}')
            found = candidates(ref)
        commit = ""
        for name in found:
            code, out, _ = module.run_command([*git, "rev-parse", "--quiet", "--verify", f"{name}^{{commit}}"])
            if not code:
                commit = out.strip()
                break
        if not commit:
            module.fail_json(msg=f'"{repository}" has no branch, tag or commit "{ref}"')
        _, subject, _ = module.run_command([*git, "log", "-1", "--format=%s", commit], check_rc=True)
        _, tree, _ = module.run_command([*git, "ls-tree", "-r", "-z", commit], check_rc=True)
        submodules = [line.split("\t", 1)[1] for line in tree.split("\0") if line.startswith("160000 ")]
        archive = Path(work) / "files.tar"
        module.run_command([*git, "archive", "--format", "tar", "--output", str(archive), commit], check_rc=True)
        unpack(module, archive, dest)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    module.exit_json(changed=False, commit=commit, subject=subject.strip(), submodules=submodules)


if __name__ == "__main__":
    main()
