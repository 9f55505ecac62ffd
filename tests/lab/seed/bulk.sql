-- All rows of plan_run at once, in the order in which they would have been written. Needs plan.sql in the same session.
BEGIN;
INSERT INTO flow_run (id, created, updated, name, state_type, run_count, expected_start_time, start_time, end_time,
    total_run_time, flow_version, empirical_policy, tags, flow_id, deployment_id, state_name, work_queue_name,
    state_timestamp, infrastructure_pid, work_queue_id, deployment_version, labels, parameters)
SELECT r.id, r.t, e.moment, r.name, e.type, 1, r.t, b.moment, e.moment, e.moment - b.moment, md5(r.flow_name),
       '{"retries": 0, "resuming": false, "pause_keys": [], "retry_type": null, "max_retries": 0, "retry_delay": 0, "retry_delay_seconds": 0.0}',
       r.tags, r.flow_id, r.deployment_id, e.name, r.queue_name, e.moment, r.pid, r.queue_id, left(md5(r.flow_name), 12),
       pg_temp.labels(r), pg_temp.parameters(r)
FROM plan_run r JOIN plan_state e ON e.n = r.n AND e.k = 5 JOIN plan_state b ON b.n = r.n AND b.k = 4
ORDER BY r.n;

INSERT INTO flow_run_state (id, created, updated, type, timestamp, name, message, state_details, flow_run_id)
SELECT id, moment, moment, type, moment, name, message, details, flow_run_id FROM plan_state ORDER BY n, k;
UPDATE flow_run f SET state_id = s.id FROM plan_state s WHERE s.flow_run_id = f.id AND s.k = 5;

INSERT INTO task_run (id, created, updated, name, state_type, run_count, expected_start_time, start_time, end_time,
    total_run_time, task_key, dynamic_key, empirical_policy, task_inputs, flow_run_id, state_id, state_name,
    state_timestamp, flow_run_run_count, labels)
SELECT t.id, t.t, s.moment, t.name, s.type, 1, t.t, t.t, s.moment, t.seconds * interval '1 s', t.task_key, t.key,
       '{"retries": 0, "max_retries": 0, "retry_delay": 0, "retry_delay_seconds": 0.0, "retry_jitter_factor": null}',
       t.inputs, t.flow_run_id, s.id, s.name, s.moment, 1, '{}'
FROM plan_task t JOIN plan_task_state s ON s.n = t.n AND s.k = t.k AND s.s = 3 ORDER BY t.n, t.k;

INSERT INTO task_run_state (id, created, updated, type, timestamp, name, message, state_details, task_run_id)
SELECT id, moment, moment, type, moment, name, '', details, task_run_id FROM plan_task_state ORDER BY n, k, s;

INSERT INTO log (id, created, updated, name, level, flow_run_id, task_run_id, message, timestamp)
SELECT id, moment, moment, name, level, flow_run_id, task_run_id, message, moment FROM plan_log ORDER BY n, moment;

CREATE TEMPORARY TABLE made AS SELECT * FROM plan_event ORDER BY n, part, moment;
INSERT INTO events (occurred, event, resource_id, resource, related_resource_ids, related, payload, received, recorded,
    follows, id, created, updated)
SELECT moment, event, resource ->> 'prefect.resource.id', resource,
       (SELECT jsonb_agg(x -> 'prefect.resource.id') FROM jsonb_array_elements(related) AS x),
       related, payload, moment, moment, follows, id, moment, moment FROM made;
INSERT INTO event_resources (occurred, resource_id, resource_role, resource, event_id, created, updated)
SELECT moment, x ->> 'prefect.resource.id', coalesce(x ->> 'prefect.resource.role', ''),
       (x - '{prefect.resource.id,prefect.resource.role}'::text[])::json, id, moment, moment
FROM made, jsonb_array_elements(jsonb_build_array(resource) || related) AS x;
COMMIT;
ANALYZE;
