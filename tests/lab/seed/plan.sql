-- What Prefect 3.8.8 writes for a flow run of a deployment, from Scheduled to its end: the shapes, sizes, kinds of ids
-- (time-ordered or random) and links were copied from runs of the flow `smoke`. Everything here is temporary.
--
-- The views are pure functions of the table plan_run, ids included, so each can be read in parts and as often as needed.
-- Settings: seed.rows (wanted) or seed.runs, seed.hours (they are spread over so many, up to now), seed.salt.
SET synchronous_commit = off;
SET client_min_messages = warning;

-- A UUID of version 7 with the time of `moment`; its random part depends on `label` only.
CREATE FUNCTION pg_temp.id7(moment timestamptz, label text) RETURNS uuid IMMUTABLE PARALLEL SAFE LANGUAGE sql AS $$
    SELECT (lpad(to_hex((extract(epoch FROM moment) * 1000)::bigint), 12, '0') || '7'
            || substr(md5(current_setting('seed.salt') || label), 14, 19))::uuid
$$;
-- A random-looking UUID (version 4) that depends on `label` only.
CREATE FUNCTION pg_temp.id4(label text) RETURNS uuid IMMUTABLE PARALLEL SAFE LANGUAGE sql AS $$
    SELECT (overlay(overlay(md5(current_setting('seed.salt') || label) placing '4' from 13)
            placing substr('89ab', 1 + (abs(hashtext(label)) % 4), 1) from 17))::uuid
$$;
-- A time as Prefect writes it into JSON.
CREATE FUNCTION pg_temp.iso(moment timestamptz) RETURNS text IMMUTABLE PARALLEL SAFE LANGUAGE sql AS $$
    SELECT to_char(moment AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"')
$$;
-- The field state_details of a state.
CREATE FUNCTION pg_temp.details(flow_run uuid, task_run uuid, transition uuid, due timestamptz, ended boolean)
    RETURNS jsonb IMMUTABLE PARALLEL SAFE LANGUAGE sql AS $$
    SELECT jsonb_build_object(
        'flow_run_id', flow_run, 'task_run_id', task_run, 'child_flow_run_id', null, 'scheduled_time', pg_temp.iso(due),
        'cache_key', null, 'cache_expiration', null, 'deferred', CASE WHEN transition IS NULL THEN false END,
        'untrackable_result', ended, 'pause_timeout', null, 'pause_reschedule', false, 'pause_key', null,
        'run_input_keyset', null, 'refresh_cache', null, 'retriable', null, 'transition_id', transition,
        'task_parameters_id', null, 'traceparent', null, 'deployment_concurrency_lease_id', null)
$$;
-- A resource of an event.
CREATE FUNCTION pg_temp.resource(kind text, id text, name text)
    RETURNS jsonb IMMUTABLE PARALLEL SAFE LANGUAGE sql AS $$
    SELECT jsonb_strip_nulls(jsonb_build_object(
        'prefect.resource.id', 'prefect.' || kind || '.' || id,
        'prefect.resource.name', name, 'prefect.resource.role', kind))
$$;

-- One row for each flow run that is to be. With all that belongs to it a run was 184 rows on average, with the kit's own
-- deployments (each of their tags is a row for each event).
CREATE TEMPORARY TABLE plan_run AS
WITH wanted AS (
    SELECT coalesce(nullif(current_setting('seed.runs', true), '')::int,
                    ceil(current_setting('seed.rows')::bigint / 182.0)::int) AS runs,
           make_interval(secs => current_setting('seed.hours')::float * 3600) AS span
), targets AS (
    SELECT row_number() OVER (ORDER BY d.name, d.id) - 1 AS number, count(*) OVER () AS many,
           d.id AS deployment_id, d.name AS deployment_name, f.id AS flow_id, f.name AS flow_name,
           q.id AS queue_id, q.name AS queue_name, p.id AS pool_id, p.name AS pool_name, p.type AS pool_type,
           d.tags || '["seeded"]'::jsonb AS tags
    FROM deployment d JOIN flow f ON f.id = d.flow_id
    JOIN work_queue q ON q.id = d.work_queue_id JOIN work_pool p ON p.id = q.work_pool_id
), runs AS (
    SELECT n, now() - span + span * (n - 0.5) / runs - interval '60 s' AS t, abs(hashtext('run' || n)) AS h
    FROM wanted, generate_series(1, runs) AS n
)
SELECT r.n, pg_temp.id4('run' || r.n) AS id, r.t, 1 + r.h % 5 AS tasks, r.h % 23 = 0 AS failed,
       (ARRAY['amber', 'bold', 'calm', 'dapper', 'eager', 'fluffy', 'giddy', 'hazel', 'ivory', 'jolly', 'keen', 'lilac',
              'mellow', 'nimble', 'opal', 'proud'])[1 + r.h % 16] || '-'
       || (ARRAY['ant', 'bear', 'crane', 'dove', 'eagle', 'ferret', 'gecko', 'heron', 'ibis', 'jackal', 'koala',
                 'lemur', 'mole', 'newt', 'otter', 'puffin', 'quail'])[1 + (r.h / 16) % 17] AS name,
       (1000 + r.h % 30000)::text AS pid, t.*,
       jsonb_build_array(
           pg_temp.resource('flow', t.flow_id::text, t.flow_name),
           pg_temp.resource('deployment', t.deployment_id::text, t.deployment_name),
           pg_temp.resource('work-queue', t.queue_id::text, t.queue_name),
           pg_temp.resource('work-pool', t.pool_id::text, t.pool_name)
               || jsonb_build_object('prefect.work-pool.type', t.pool_type))
       || (SELECT jsonb_agg(pg_temp.resource('tag', x, NULL)) FROM jsonb_array_elements_text(t.tags) AS x) AS related
FROM runs r JOIN targets t ON t.number = r.h % t.many;
CREATE UNIQUE INDEX ON plan_run (n);
ANALYZE plan_run;

CREATE FUNCTION pg_temp.labels(r plan_run) RETURNS jsonb IMMUTABLE LANGUAGE sql AS $$
    SELECT jsonb_build_object(
        'prefect.flow.id', r.flow_id, 'prefect.deployment.id', r.deployment_id, 'prefect.worker.name', 'general-1',
        'prefect.worker.type', r.pool_type, 'prefect.work-pool.id', r.pool_id, 'prefect.work-pool.name', r.pool_name)
$$;
CREATE FUNCTION pg_temp.parameters(r plan_run) RETURNS jsonb IMMUTABLE LANGUAGE sql AS $$
    SELECT jsonb_build_object('source', 's3://landing/' || r.n % 40, 'since', r.t::date, 'batch', left(r.id::text, 8))
$$;

-- k: 1 Scheduled, 2 Pending, 3 Submitting, 4 Running, 5 the end.
CREATE TEMPORARY VIEW plan_state AS
SELECT r.n, s.k, pg_temp.id7(r.t + s.later, 'state' || r.n || '.' || s.k) AS id,
       (CASE WHEN s.k = 5 AND r.failed THEN 'FAILED' ELSE s.type END)::state_type AS type,
       CASE WHEN s.k = 5 AND r.failed THEN 'Failed' ELSE s.name END AS name,
       CASE WHEN s.k = 5 AND r.failed
            THEN 'Flow run encountered an exception: ValueError: the source answered ' || 400 + r.n % 120 END AS message,
       r.t + s.later AS moment,
       pg_temp.details(r.id, NULL, CASE WHEN s.k > 1 THEN pg_temp.id4('transition' || r.n || '.' || s.k) END,
                       CASE WHEN s.k < 4 THEN r.t END, s.k = 5) AS details,
       r.id AS flow_run_id
FROM plan_run r CROSS JOIN LATERAL (VALUES
    (1, 'SCHEDULED', 'Scheduled', interval '0.004 s'), (2, 'PENDING', 'Pending', interval '4.457 s'),
    (3, 'PENDING', 'Submitting', interval '4.572 s'), (4, 'RUNNING', 'Running', interval '5.934 s'),
    (5, 'COMPLETED', 'Completed', interval '6.09 s' + r.tasks * (1 + r.n % 7) * interval '0.913 s')
) AS s (k, type, name, later);

CREATE TEMPORARY VIEW plan_task AS
SELECT r.n, k, r.id AS flow_run_id, x.t, x.seconds, pg_temp.id7(x.t, 'task' || r.n || '.' || k) AS id,
       x.noun || '-' || left(x.key::text, 3) AS name, x.noun || '-' || left(md5(x.noun), 8) AS task_key, x.key::text,
       jsonb_build_object('number', '[]'::jsonb, 'source', '[]'::jsonb) AS inputs
FROM plan_run r CROSS JOIN LATERAL generate_series(1, r.tasks) AS k CROSS JOIN LATERAL (
    SELECT r.t + interval '6.012 s' + (k - 1) * (1 + r.n % 7) * interval '0.913 s' AS t,
           (1 + r.n % 7) * 0.9 AS seconds, pg_temp.id4('key' || r.n || '.' || k) AS key,
           (ARRAY['extract', 'transform', 'load', 'check', 'report'])[k] AS noun
) AS x;

-- s: 1 Pending, 2 Running, 3 Completed. The event of a state has the state's id.
CREATE TEMPORARY VIEW plan_task_state AS
SELECT t.n, t.k, s.s, pg_temp.id7(t.t + s.later, 'taskstate' || t.n || '.' || t.k || '.' || s.s) AS id,
       s.type::state_type AS type, s.name, t.t + s.later AS moment, t.id AS task_run_id, t.flow_run_id,
       pg_temp.details(t.flow_run_id, t.id, NULL, NULL, s.s = 3) AS details
FROM plan_task t CROSS JOIN LATERAL (VALUES
    (1, 'PENDING', 'Pending', interval '0.0011 s'), (2, 'RUNNING', 'Running', interval '0.0016 s'),
    (3, 'COMPLETED', 'Completed', t.seconds * interval '1 s')
) AS s (s, type, name, later);

-- k: 1 to 2 the worker's, sent before the run begins, later ones the run's.
CREATE TEMPORARY VIEW plan_log AS
SELECT r.n, l.k, r.t + l.later AS moment, pg_temp.id7(r.t + l.later, 'log' || r.n || '.' || l.k) AS id,
       l.name, l.level, r.id AS flow_run_id, NULL::uuid AS task_run_id, l.message
FROM plan_run r CROSS JOIN LATERAL (VALUES
    (1, interval '4.391 s', 'prefect.flow_runs.worker', 20,
     'Worker ''general-1'' submitting flow run ''' || r.id || ''''),
    (2, interval '4.652 s', 'prefect.flow_runs.worker', 20,
     'Flow run ''' || r.name || ''' submitted to infrastructure'),
    (3, interval '5.783 s', 'prefect.flow_runs', 20, 'Running 1 deployment pull step(s)'),
    (4, interval '5.814 s', 'prefect.flow_runs', 20, 'Executing deployment step: set_working_directory'),
    (5, interval '5.819 s', 'prefect.flow_runs', 20,
     'Deployment step ''set_working_directory'' completed successfully'),
    (6, interval '5.843 s', 'prefect.flow_runs', 20, 'All deployment steps completed successfully'),
    (7, interval '5.968 s', 'prefect.flow_runs', 20,
     'Beginning flow run ''' || r.name || ''' for flow ''' || r.flow_name || ''''),
    (8, interval '6.1 s' + r.tasks * (1 + r.n % 7) * interval '0.913 s', 'prefect.flow_runs',
     CASE WHEN r.failed THEN 40 ELSE 20 END,
     CASE WHEN r.failed THEN 'Finished in state Failed(''Flow run encountered an exception: ValueError'')'
          ELSE 'Finished in state Completed()' END)
) AS l (k, later, name, level, message)
UNION ALL
SELECT t.n, 10 + 2 * t.k + l.s, t.t + l.later, pg_temp.id7(t.t + l.later, 'tasklog' || t.n || '.' || t.k || '.' || l.s),
       'prefect.task_runs', 20, t.flow_run_id, t.id, l.message
FROM plan_task t CROSS JOIN LATERAL (VALUES
    (0, interval '0.0024 s', t.name || ': ' || abs(hashtext(t.key)) % 90000 || ' rows of batch ' || left(t.key, 8)
        || ' read from s3://landing/' || t.n % 40 || '/part-' || t.k || '.parquet'),
    (1, t.seconds * interval '1 s', 'Finished in state Completed()')
) AS l (s, later, message);

-- part 1: recorded when the run is made; 2: when the worker takes it; 3: with its tasks and its end.
CREATE TEMPORARY VIEW plan_event AS
-- States of the flow run.
SELECT s.n, CASE s.k WHEN 1 THEN 1 WHEN 4 THEN 3 WHEN 5 THEN 3 ELSE 2 END AS part, s.moment,
       'prefect.flow-run.' || s.name AS event, s.id,
       jsonb_build_object(
           'prefect.resource.id', 'prefect.flow-run.' || r.id, 'prefect.resource.name', r.name,
           'prefect.run-count', (s.k > 3)::int::text, 'prefect.state-message', coalesce(s.message, ''),
           'prefect.state-name', s.name, 'prefect.state-type', s.type,
           'prefect.state-timestamp', pg_temp.iso(s.moment)) AS resource,
       r.related,
       jsonb_build_object(
           'intended', jsonb_build_object('from', CASE WHEN s.k > 1 THEN 'PENDING' END, 'to', s.type),
           'initial_state', CASE WHEN s.k > 1 THEN jsonb_build_object('name', 'Pending', 'type', 'PENDING') END,
           'validated_state', jsonb_build_object('name', s.name, 'type', s.type)) AS payload,
       CASE WHEN s.k > 1 THEN pg_temp.id4('follows' || s.n) END AS follows
FROM plan_state s JOIN plan_run r USING (n)
UNION ALL
-- What the worker and the run say about themselves.
SELECT r.n, e.part, r.t + e.later, e.event, pg_temp.id7(r.t + e.later, e.event || r.n), e.resource,
       CASE WHEN e.event LIKE '%pull-step%' THEN jsonb_build_array(r.related -> 0) ELSE r.related END, e.payload, NULL::uuid
FROM plan_run r CROSS JOIN LATERAL (VALUES
    (2, interval '4.641 s', 'prefect.worker.submitted-flow-run', jsonb_build_object(
        'prefect.resource.id', 'prefect.worker.process.general-1', 'prefect.resource.name', 'general-1',
        'prefect.version', '3.8.8', 'prefect.worker-type', 'process'), '{}'::jsonb),
    (3, interval '5.82 s', 'prefect.flow-run.pull-step.executed', jsonb_build_object(
        'prefect.resource.id', 'prefect.flow-run.' || r.id, 'prefect.resource.name', r.name),
     jsonb_build_object('index', 0, 'step_name', 'set_working_directory', 'id', null, 'inputs',
         jsonb_build_object('directory', '/opt/prefect/flows/current'))),
    (3, interval '5.97 s', 'prefect.flow-run.heartbeat', jsonb_build_object(
        'prefect.resource.id', 'prefect.flow-run.' || r.id, 'prefect.resource.name', r.name), '{}'::jsonb),
    (3, interval '7 s' + r.tasks * (1 + r.n % 7) * interval '0.913 s', 'prefect.worker.executed-flow-run',
     jsonb_build_object('prefect.resource.id', 'prefect.worker.process.general-1', 'prefect.resource.name', 'general-1',
         'prefect.version', '3.8.8', 'prefect.worker-type', 'process'), '{}'::jsonb)
) AS e (part, later, event, resource, payload)
UNION ALL
-- States of the task runs.
SELECT s.n, 3, s.moment, 'prefect.task-run.' || s.name, s.id,
       jsonb_build_object(
           'prefect.resource.id', 'prefect.task-run.' || t.id, 'prefect.resource.name', t.name,
           'prefect.run-count', (s.s > 1)::int::text, 'prefect.state-message', '', 'prefect.state-name', s.name,
           'prefect.state-type', s.type, 'prefect.state-timestamp', pg_temp.iso(s.moment),
           'prefect.orchestration', 'client'),
       jsonb_build_array(pg_temp.resource('flow-run', r.id::text, r.name)) || r.related,
       jsonb_build_object(
           'intended', jsonb_build_object('from', CASE WHEN s.s > 1 THEN 'PENDING' END, 'to', s.type),
           'initial_state', CASE WHEN s.s > 1 THEN jsonb_build_object(
               'name', 'Pending', 'type', 'PENDING', 'message', '', 'state_details', '{}'::jsonb) END,
           'validated_state', jsonb_build_object(
               'name', s.name, 'type', s.type, 'message', '', 'state_details', '{}'::jsonb, 'data', null),
           'task_run', jsonb_build_object(
               'name', t.name, 'tags', '[]'::jsonb, 'labels', '{}'::jsonb, 'task_key', t.task_key,
               'run_count', (s.s > 1)::int, 'start_time', pg_temp.iso(t.t), 'dynamic_key', t.key,
               'task_inputs', t.inputs, 'total_run_time', CASE WHEN s.s = 3 THEN t.seconds ELSE 0 END,
               'empirical_policy', jsonb_build_object(
                   'retries', 0, 'max_retries', 0, 'retry_delay', 0, 'retry_delay_seconds', 0.0),
               'flow_run_run_count', 1, 'expected_start_time', pg_temp.iso(t.t))),
       CASE WHEN s.s > 1 THEN pg_temp.id4('taskfollows' || s.n || '.' || s.k) END
FROM plan_task_state s JOIN plan_task t USING (n, k) JOIN plan_run r USING (n);
