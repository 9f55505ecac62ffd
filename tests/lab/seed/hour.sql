-- The flow runs of plan_run made one step after the other, by the statements that the server was seen to send
-- (log_statement = mod, runs of the flow `smoke`) and with its commits, eight runs at a time in step: so there are dead
-- rows of flow_run, task_run and the workers' tables, and their space is used again, as in real life.
CREATE PROCEDURE pg_temp.record(first int, last int, wanted int) LANGUAGE plpgsql AS $$
DECLARE
    e record;
BEGIN
    -- The server writes events in batches: those at once, then the resources of each one by one.
    CREATE TEMPORARY TABLE batch AS SELECT * FROM plan_event WHERE n BETWEEN first AND last AND part = wanted;
    INSERT INTO events (occurred, event, resource_id, resource, related_resource_ids, related, payload, received,
        recorded, follows, id)
    SELECT moment, event, resource ->> 'prefect.resource.id', resource,
           (SELECT jsonb_agg(x -> 'prefect.resource.id') FROM jsonb_array_elements(related) AS x),
           related, payload, moment, clock_timestamp(), follows, id FROM batch ORDER BY moment;
    FOR e IN SELECT * FROM batch ORDER BY moment LOOP
        INSERT INTO event_resources (occurred, resource_id, resource_role, resource, event_id)
        SELECT e.moment, x ->> 'prefect.resource.id', coalesce(x ->> 'prefect.resource.role', ''),
               (x - '{prefect.resource.id,prefect.resource.role}'::text[])::json, e.id
        FROM jsonb_array_elements(jsonb_build_array(e.resource) || e.related) AS x;
    END LOOP;
    DROP TABLE batch;
    COMMIT;
END $$;

DO $$
DECLARE
    first int; last int; step int; r record; s record; t record; ends record;
BEGIN
    FOR first IN SELECT generate_series(1, (SELECT max(n) FROM plan_run), 8) LOOP
        last := first + 7;
        FOR step IN 1..5 LOOP
            -- Polls of the worker, between the steps of the runs.
            UPDATE worker SET last_heartbeat_time = clock_timestamp(), updated = now();
            COMMIT;
            UPDATE work_queue SET last_polled = clock_timestamp(), updated = now();
            UPDATE deployment SET last_polled = clock_timestamp(), updated = now()
            WHERE id IN (SELECT deployment_id FROM plan_run WHERE n BETWEEN first AND last);
            COMMIT;
            FOR r IN SELECT * FROM plan_run WHERE n BETWEEN first AND last ORDER BY n LOOP
                SELECT * INTO s FROM plan_state WHERE n = r.n AND k = step;
                IF step = 1 THEN
                    INSERT INTO flow_run (id, created, updated, name, run_count, tags, flow_id, deployment_id,
                        work_queue_name, work_queue_id, deployment_version, labels, parameters)
                    SELECT r.id, r.t, r.t, r.name, 0, r.tags, r.flow_id, r.deployment_id, r.queue_name, r.queue_id,
                           left(md5(r.flow_name), 12), '{}', pg_temp.parameters(p) FROM plan_run p WHERE p.n = r.n;
                ELSIF step = 3 THEN
                    UPDATE flow_run SET labels = (SELECT pg_temp.labels(p) FROM plan_run p WHERE p.n = r.n),
                        updated = clock_timestamp() WHERE id = r.id;
                    COMMIT;
                ELSIF step = 4 THEN
                    UPDATE flow_run SET flow_version = md5(r.flow_name), updated = clock_timestamp(), empirical_policy =
                        '{"retries": 0, "resuming": false, "pause_keys": [], "retry_type": null, "max_retries": 0, "retry_delay": 0, "retry_delay_seconds": 0.0}'
                    WHERE id = r.id;
                    COMMIT;
                ELSIF step = 5 THEN
                    -- Each state of a task run is an upsert of the task run.
                    FOR t IN SELECT p.*, x.s, x.type, x.name AS state_name, x.moment, x.details, x.id AS state_id
                        FROM plan_task p JOIN plan_task_state x USING (n, k) WHERE n = r.n ORDER BY k, s
                    LOOP
                        INSERT INTO task_run AS old (id, created, updated, name, state_type, run_count,
                            expected_start_time, start_time, end_time, total_run_time, task_key, dynamic_key,
                            empirical_policy, task_inputs, flow_run_id, state_id, state_name, state_timestamp,
                            flow_run_run_count, labels)
                        VALUES (t.id, t.t, t.moment, t.name, t.type, (t.s > 1)::int, t.t,
                            CASE WHEN t.s > 1 THEN t.t END, CASE WHEN t.s = 3 THEN t.moment END,
                            (t.s = 3)::int * t.seconds * interval '1 s', t.task_key, t.key,
                            '{"retries": 0, "max_retries": 0, "retry_delay": 0, "retry_delay_seconds": 0.0, "retry_jitter_factor": null}',
                            t.inputs, t.flow_run_id, t.state_id, t.state_name, t.moment, 1, '{}')
                        ON CONFLICT (flow_run_id, task_key, dynamic_key) DO UPDATE SET
                            updated = excluded.updated, state_type = excluded.state_type, run_count = excluded.run_count,
                            start_time = excluded.start_time, end_time = excluded.end_time,
                            total_run_time = excluded.total_run_time, state_id = excluded.state_id,
                            state_name = excluded.state_name, state_timestamp = excluded.state_timestamp;
                        INSERT INTO task_run_state (id, type, timestamp, name, message, state_details, task_run_id)
                        VALUES (t.state_id, t.type, t.moment, t.state_name, '', t.details, t.id) ON CONFLICT DO NOTHING;
                        COMMIT;
                    END LOOP;
                END IF;
                INSERT INTO flow_run_state (id, type, timestamp, name, message, state_details, flow_run_id)
                VALUES (s.id, s.type, s.moment, s.name, s.message, s.details, r.id);
                UPDATE flow_run SET state_id = s.id, state_type = s.type, state_name = s.name,
                    state_timestamp = s.moment, updated = clock_timestamp(),
                    expected_start_time = coalesce(expected_start_time, r.t),
                    next_scheduled_start_time = CASE WHEN step = 1 THEN r.t END, run_count = (step > 3)::int,
                    start_time = CASE WHEN step = 4 THEN s.moment ELSE start_time END,
                    end_time = CASE WHEN step = 5 THEN s.moment END,
                    total_run_time = CASE WHEN step = 5 THEN s.moment - start_time ELSE total_run_time END
                WHERE id = r.id;
                COMMIT;
                IF step = 3 THEN
                    UPDATE flow_run SET infrastructure_pid = r.pid, updated = clock_timestamp() WHERE id = r.id;
                    COMMIT;
                END IF;
            END LOOP;
            IF step IN (1, 3, 5) THEN
                CALL pg_temp.record(first, last, (step + 1) / 2);
            END IF;
            IF step IN (3, 5) THEN
                INSERT INTO log (id, name, level, flow_run_id, task_run_id, message, timestamp)
                SELECT id, name, level, flow_run_id, task_run_id, message, moment FROM plan_log
                WHERE n BETWEEN first AND last AND (k <= 2) = (step = 3) ORDER BY moment;
                COMMIT;
            END IF;
        END LOOP;
    END LOOP;
END $$;
