"""What an account may do: pure decisions, in two steps. First which facts are needed beside the request, then yes or no.

What method and path do not say is in the body or in the database: a block's secrets are asked for by a field of the body, a flow
run belongs to a work pool, a change of state can be forced.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from . import routes
from .roles import PEOPLE, ROLES, Account

#: States that a trigger may set: it may cancel what it has made.
CANCELS = frozenset({"CANCELLING", "CANCELLED"})
#: Fields of a new flow run that say what is executed, and where: with one of them whoever may run a deployment could run anything.
EXECUTED = ("job_variables", "work_queue_name", "infrastructure_document_id")


@dataclass(frozen=True)
class Asked:
    """A request, as far as decisions go by it."""

    #: WS for a websocket.
    method: str
    #: Decoded.
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    #: JSON; None where there is none.
    body: Any = None


@dataclass(frozen=True, order=True)
class Question:
    """A fact of Prefect's that a decision needs."""

    #: flow_run, deployment, block, block_type_name
    kind: str
    id: str


@dataclass(frozen=True)
class Thing:
    """What a question gave."""

    #: Empty: of none.
    pool: str = ""
    #: FLOW/DEPLOYMENT, or TYPE/NAME of a block.
    name: str = ""
    #: Whether there is such a thing.
    found: bool = True


#: Nothing of that kind and id.
NOTHING = Thing(found=False)
Answers = Mapping[Question, Thing]


def wants_secrets(asked: Asked) -> bool:
    """Whether blocks are asked for with their secrets, in the query or in the body."""
    body = asked.body if isinstance(asked.body, dict) else {}
    return is_true(asked.query.get("include_secrets")) or is_true(body.get("include_secrets"))


def is_true(value: object) -> bool:
    # As pydantic takes it for true; whatever is neither that nor clearly false is refused by the server.
    return value is not None and str(value).strip().lower() not in ("false", "0", "off", "f", "no", "n")


def may_read_block(account: Account, name: str) -> bool:
    """Whether an account may have a block's secrets. Its own may be TYPE/NAME, TYPE/* or *; an empty name is any block."""
    kind = name.partition("/")[0]
    return "*" in account.blocks or (name != "" and bool({name, f"{kind}/*"} & account.blocks))


def _is_force(asked: Asked) -> bool:
    body = asked.body if isinstance(asked.body, dict) else {}
    return is_true(body.get("force"))


def state_type(asked: Asked) -> str:
    """The type of the state that a flow run is to get, in capitals; empty where there is none."""
    body = asked.body if isinstance(asked.body, dict) else {}
    state = body.get("state")
    return str(state.get("type", "")).upper() if isinstance(state, dict) else ""


def needs_body(account: Account, found: list[tuple[routes.Route, dict[str, str]]]) -> bool:
    """Whether a decision goes by the body: for an administrator it never does."""
    needed = {route.permission for route, _ in found}
    return (account.role != "admin" and bool(needed & {"blocks", "state", "run"})) or (
        account.role == "worker" and any(route.template in _BY_BODY for route, _ in found)
    )


#: Routes of `work` and `poll` whose body names what they are about.
_BY_BODY = frozenset({"/api/flow_runs/", "/api/deployments/get_scheduled_flow_runs"})


def questions(account: Account, asked: Asked, found: list[tuple[routes.Route, dict[str, str]]]) -> list[Question]:
    """The facts that a decision needs; none for an administrator."""
    wanted: set[Question] = set()
    if account.role not in ("worker", "trigger"):
        return []
    for route, parts in found:
        id = parts.get("id", "")
        if route.template.startswith("/api/flow_runs/{id}"):
            wanted.add(Question("flow_run", id))
        elif route.template.startswith("/api/deployments/{id}") and route.permission == "run":
            wanted.add(Question("deployment", id))
        elif route.template == "/api/block_documents/{id}" and wants_secrets(asked):
            wanted.add(Question("block", id))
        if route.template == "/api/flow_runs/" and isinstance(asked.body, dict) and asked.body.get("deployment_id"):
            wanted.add(Question("deployment", str(asked.body["deployment_id"])))
    return sorted(wanted)


def refusal(
    account: Account | None, asked: Asked, found: list[tuple[routes.Route, dict[str, str]]], answers: Answers
) -> str:
    """Why a request is refused, for a person; empty where it is not.

    Args:
        found: the routes that it may be of (routes.Table.find).
        answers: those of `questions`.
    """
    needed = routes.permissions(found, asked.method, asked.path)
    if "nobody" in needed:
        return "This address is closed."
    # Health checks, and the figures of the server's process.
    if needed == {"public"}:
        return ""
    if account is None:
        return "This account has no role."
    if account.role == "admin":
        return ""
    if account.role == "trigger" and needed == {"read"}:
        return _trigger_reads(account, found, answers)
    if lacking := needed - account.permissions:
        others = ", ".join(role for role in PEOPLE if needed <= ROLES[role])
        return f"The role {account.role} may not {routes.PERMISSIONS[min(lacking)]}. Roles that may: {others}."
    for check in (_secrets, _pool, _state_change, _new_run):
        if why := check(account, asked, found, answers):
            return why
    return ""


Found = list[tuple[routes.Route, dict[str, str]]]


def _trigger_reads(account: Account, found: Found, answers: Answers) -> str:
    """It looks at its own flow runs, and finds its deployments by name: nothing else."""
    for route, parts in found:
        name = ""
        if route.template == "/api/flow_runs/{id}":
            name = answers.get(Question("flow_run", parts["id"]), NOTHING).name
        elif route.template == "/api/deployments/name/{flow_name}/{deployment_name}":
            name = f"{parts['flow_name']}/{parts['deployment_name']}"
        if name not in account.deployments:
            return f"The account {account.name} sees the flow runs of its own deployments, and nothing else."
    return ""


def _secrets(account: Account, asked: Asked, found: Found, answers: Answers) -> str:
    if not any(route.permission == "blocks" for route, _ in found) or not wants_secrets(asked):
        return ""
    for route, parts in found:
        named = "/api/block_types/slug/{slug}/block_documents/name/{block_document_name}"
        if route.template == named:
            name = f"{parts['slug']}/{parts['block_document_name']}"
        elif route.template == "/api/block_documents/{id}":
            name = answers.get(Question("block", parts["id"]), NOTHING).name
        else:
            name = ""
        if not may_read_block(account, name):
            block = f"the block {name}" if name else "this block"
            return f"The account {account.name} may not read the secrets of {block}; `blocks` in the inventory names those that it may."
    return ""


def _pool(account: Account, asked: Asked, found: Found, answers: Answers) -> str:
    """A worker has to do with its own work pools."""
    if account.role != "worker":
        return ""
    for route, parts in found:
        if route.permission == "read" or route.permission == "blocks":
            continue
        if route.template.startswith("/api/work_pools/"):
            pool = parts.get("work_pool_name", parts.get("name", ""))
            if pool not in account.pools:
                return f"The account {account.name} is no worker of the work pool {pool}."
        elif route.permission == "poll":
            return "Workers of this kit poll work pools."
        elif route.permission == "state" and "id" not in parts:
            return f"The account {account.name} sets states of flow runs one by one."
        elif route.template == "/api/flow_runs/" and (pool := _named_pool(asked)) and pool not in account.pools:
            return f"The account {account.name} is no worker of the work pool {pool}."
        for question in questions(account, asked, [(route, parts)]):
            thing = answers.get(question, NOTHING)
            if question.kind == "deployment":
                if thing.pool not in account.pools and thing.name not in account.deployments:
                    which = f"the deployment {thing.name}" if thing.name else "this deployment"
                    return (
                        f"The account {account.name} may not run {which}, which is of another work pool; `deployments` in the"
                        " inventory names those that it may."
                    )
            # One without a work pool is a program's that a flow has started, or a person's.
            elif not thing.found or (thing.pool and thing.pool not in account.pools):
                return f"The account {account.name} is no worker of the work pool that this is of."
    return ""


def _named_pool(asked: Asked) -> str:
    """The work pool that a flow run without a deployment asks for: whoever polls it runs what its job variables say."""
    body = asked.body if isinstance(asked.body, dict) else {}
    return str(body.get("work_pool_name") or "")


def _state_change(account: Account, asked: Asked, found: Found, answers: Answers) -> str:
    if not any(route.permission == "state" for route, _ in found):
        return ""
    if account.role == "trigger":
        own = all(
            answers.get(Question("flow_run", parts.get("id", "")), NOTHING).name in account.deployments
            for _, parts in found
        )
        if not own or state_type(asked) not in CANCELS:
            return f"The account {account.name} may cancel flow runs of its own deployments, and nothing else."
    # A worker reports its dead by force.
    if account.role != "worker" and _is_force(asked):
        return f"The role {account.role} may not force a state past Prefect's rules."
    return ""


def _new_run(account: Account, asked: Asked, found: Found, answers: Answers) -> str:
    if not any(route.permission == "run" for route, _ in found):
        return ""
    if account.role == "trigger":
        for question in questions(account, asked, found):
            if answers.get(question, NOTHING).name not in account.deployments:
                return f"The account {account.name} may not run this deployment."
    if account.role in ("operator", "trigger") and (field := _executed(asked.body)):
        return f"The role {account.role} may not set {field} of a flow run."
    return ""


def _executed(body: Any) -> str:
    """The first field of a new flow run, or of one of several, that says what is executed; empty: none."""
    bodies = body.get("flow_runs", [body]) if isinstance(body, dict) else body if isinstance(body, list) else []
    for one in bodies:
        for name in EXECUTED:
            if isinstance(one, dict) and one.get(name):
                return name
    return ""
