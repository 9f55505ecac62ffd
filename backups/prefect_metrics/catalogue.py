"""Every metric of the kit's: its name, kind, labels and meaning. docs/monitoring/metrics.md is made of it.

Names follow Prometheus' conventions: base units, `_total` for what only grows, and moments instead of ages (`time() - x` is
right also when nobody has written the file for an hour).
"""

from __future__ import annotations

from dataclasses import dataclass

PREFIX = "prefect_kit_"
GAUGE, COUNTER, HISTOGRAM, SUMMARY = "gauge", "counter", "histogram", "summary"
#: Upper bounds of the buckets of the start delay, in seconds: a worker polls every 15 s.
DELAYS = (1.0, 5.0, 15.0, 30.0, 60.0, 300.0, 900.0, 3600.0)


@dataclass(frozen=True)
class Metric:
    """One family of samples."""

    #: Without PREFIX.
    short: str
    kind: str
    meaning: str
    labels: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """As it is scraped; a histogram's and a summary's samples add _bucket, _sum and _count."""
        return PREFIX + self.short

    @property
    def unit(self) -> str:
        """What its name says that it counts."""
        for ending, unit in (
            ("_timestamp_seconds", "seconds since 1970"),
            ("_seconds", "seconds"),
            ("_bytes", "bytes"),
            ("_info", "always 1"),
        ):
            if self.short == ending[1:] or self.short.removesuffix("_total").endswith(ending):
                return unit
        return "number"

    def samples(self) -> tuple[str, ...]:
        """The names of its samples."""
        endings = {HISTOGRAM: ("_bucket", "_sum", "_count"), SUMMARY: ("_sum", "_count")}.get(self.kind, ("",))
        return tuple(self.name + ending for ending in endings)


RUN = ("work_pool", "deployment")
POOL = ("work_pool",)
CONTAINER = ("container",)

ALL = (
    # --- what there is
    Metric(
        "info",
        GAUGE,
        "Versions: of this kit, and of Prefect, Postgres and Caddy by their images' tags.",
        ("version", "prefect", "postgres", "caddy"),
    ),
    Metric(
        "check_level",
        GAUGE,
        "The result of a check of prefect-doctor: 0 ok, 1 a warning, 2 bad, 3 unknown. At most 200 checks, the worst first.",
        ("check",),
    ),
    Metric(
        "collect_success",
        GAUGE,
        "1 when a part of these metrics could be collected, 0 when it could not and they are missing.",
        ("part",),
    ),
    Metric("collect_duration_seconds", GAUGE, "How long collecting these metrics took."),
    # --- flow runs
    Metric(
        "flow_runs",
        GAUGE,
        "Flow runs that have not ended, by state type: SCHEDULED, PENDING, RUNNING, PAUSED, CANCELLING.",
        ("state", *RUN),
    ),
    Metric(
        "flow_runs_ended_total",
        COUNTER,
        "Flow runs that have ended, by state type: COMPLETED, FAILED, CRASHED, CANCELLED.",
        ("state", *RUN),
    ),
    Metric(
        "flow_run_duration_seconds",
        SUMMARY,
        "Running time of flow runs that have ended; those that never started are not counted.",
        RUN,
    ),
    Metric(
        "flow_run_start_delay_seconds",
        HISTOGRAM,
        "From when a flow run was due until it was Running.",
        POOL,
    ),
    Metric("late_flow_runs", GAUGE, "Flow runs that should have started more than 300 seconds ago.", POOL),
    Metric(
        "flow_run_lateness_max_seconds",
        GAUGE,
        "The longest time by which a flow run that has not started is late.",
        POOL,
    ),
    Metric(
        "stuck_flow_runs",
        GAUGE,
        "Flow runs that have been PENDING or CANCELLING for more than 900 seconds.",
        ("state",),
    ),
    # --- work pools, workers, limits
    Metric(
        "worker_last_heartbeat_timestamp_seconds",
        GAUGE,
        "Last heartbeat of a worker. At most the 100 workers with the newest heartbeats, within 7 days.",
        ("work_pool", "worker"),
    ),
    Metric("workers_online", GAUGE, "Workers with a heartbeat within 120 seconds.", POOL),
    Metric("work_pool_paused", GAUGE, "1 while a work pool is paused.", POOL),
    Metric(
        "work_pool_concurrency_limit",
        GAUGE,
        "Flow runs that a work pool may run at once; missing for a pool without a limit.",
        POOL,
    ),
    Metric(
        "concurrency_slots_active",
        GAUGE,
        "Slots of a global concurrency limit that are held. At most 50 limits, those with the most slots held; the rest "
        'are summed as limit="other".',
        ("limit",),
    ),
    Metric("concurrency_slots_limit", GAUGE, "Slots that a global concurrency limit has.", ("limit",)),
    # --- the database
    Metric("database_size_bytes", GAUGE, "The database with its indexes."),
    Metric("database_connections", GAUGE, "Connections to Postgres that are in use."),
    Metric("database_connections_max", GAUGE, "Connections that Postgres allows."),
    Metric("database_longest_transaction_seconds", GAUGE, "How long the longest transaction has been open."),
    Metric("database_invalid_indexes", GAUGE, "Indexes that are not valid, because their build was interrupted."),
    Metric("database_checksum_failures_total", COUNTER, "Data pages with a wrong checksum."),
    # --- containers
    Metric("container_running", GAUGE, "1 while a container of the stack runs, and is healthy or starting.", CONTAINER),
    Metric(
        "container_restarts_total",
        COUNTER,
        "Restarts by Docker, after a crash, since the container was made.",
        CONTAINER,
    ),
    Metric("container_oom_killed", GAUGE, "1 when a container was killed for its memory.", CONTAINER),
    # --- backups
    Metric("backup_last_timestamp_seconds", GAUGE, "When the newest backup was made."),
    Metric("backup_max_age_seconds", GAUGE, "How old the newest backup may be: backups_max_age_hours."),
    Metric("backup_duration_seconds", GAUGE, "How long the newest backup took."),
    Metric("backup_rows", GAUGE, "Rows in the newest backup."),
    Metric("backup_dump_size_bytes", GAUGE, "The dump of the newest backup."),
    Metric("backup_added_size_bytes", GAUGE, "What the newest backup has added to the repository."),
    Metric(
        "offsite_copy_last_timestamp_seconds",
        GAUGE,
        "When the newest backup that an off-site repository has was made.",
        ("repository",),
    ),
    Metric("offsite_copy_failed", GAUGE, "1 when the last copy to an off-site repository failed.", ("repository",)),
    Metric("verification_last_success_timestamp_seconds", GAUGE, "When a backup was last verified, and was good."),
    Metric(
        "verification_max_age_seconds",
        GAUGE,
        "How long ago the last good verification may be: backups_verify_max_age_days.",
    ),
    Metric("verification_failed", GAUGE, "1 when the last verification failed."),
    Metric("restore_duration_seconds", GAUGE, "How long a restore of everything takes, as measured by a verification."),
    # --- the certificate, upgrades, the machine
    Metric(
        "certificate_not_before_timestamp_seconds",
        GAUGE,
        "The beginning of the life of the certificate that is served.",
    ),
    Metric("certificate_not_after_timestamp_seconds", GAUGE, "Its end."),
    Metric("upgrade_last_timestamp_seconds", GAUGE, "When Prefect was last upgraded."),
    Metric("postgres_upgrade_last_timestamp_seconds", GAUGE, "When Postgres last got another major version."),
    Metric("upgrade_under_way", GAUGE, "1 while an upgrade, or a way back, has begun and not ended."),
    Metric("reboot_pending_seconds", GAUGE, "For how long a reboot has been waiting; 0: none waits."),
    Metric("security_updates_pending", GAUGE, "Packages with a security update that is not installed."),
)
BY_NAME = {one.short: one for one in ALL}


def table() -> str:
    """The table for people, as Markdown."""
    rows = ["| Metric | Kind | Unit | Labels | Meaning |", "|---|---|---|---|---|"]
    for one in ALL:
        labels = ", ".join(f"`{label}`" for label in one.labels) or "-"
        rows.append(f"| `{one.name}` | {one.kind} | {one.unit} | {labels} | {one.meaning} |")
    return "\n".join(rows) + "\n"
