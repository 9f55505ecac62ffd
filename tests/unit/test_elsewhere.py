"""Workers on machines that are not in the inventory: their accounts, and what flow runs in a Kubernetes cluster become."""

from __future__ import annotations

from .test_settings import load

access = load("prefect_access")

CLUSTER = {"name": "cluster-1", "kind": "service", "role": "worker", "pools": ["cluster"], "blocks": ["secret/own"]}


def test_a_worker_elsewhere_has_the_rights_of_one_of_the_kit():
    users = [{"name": "admin"}, {"name": "eve", "role": "viewer", "blocks": ["secret/x"]}, CLUSTER]
    rights = access.prefect_rights(access.prefect_user_accounts(users, ["secret/all", "secret/own"]))
    assert rights["admin"] == {"role": "admin"}
    # What the flows of all workers may read, no person gets by that.
    assert rights["eve"] == {"role": "viewer", "blocks": ["secret/x"]}
    (kit,) = access.prefect_worker_accounts(
        [{"name": "a", "pool": "cluster", "blocks": ["secret/own"]}], ["secret/all", "secret/own"]
    )
    assert rights["cluster-1"] == access.prefect_rights([kit])["worker-a"]
