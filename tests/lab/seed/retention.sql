-- What the server's clean-up service does: events older than seed.hours go, resources first, in batches with a commit each.
DO $$
DECLARE
    gone int;
BEGIN
    LOOP
        DELETE FROM event_resources WHERE id IN (
            SELECT id FROM event_resources
            WHERE occurred < now() - make_interval(secs => current_setting('seed.hours')::float * 3600) LIMIT 200);
        GET DIAGNOSTICS gone = ROW_COUNT;
        COMMIT;
        EXIT WHEN gone = 0;
    END LOOP;
    LOOP
        DELETE FROM events WHERE id IN (
            SELECT id FROM events
            WHERE occurred < now() - make_interval(secs => current_setting('seed.hours')::float * 3600) LIMIT 200);
        GET DIAGNOSTICS gone = ROW_COUNT;
        COMMIT;
        EXIT WHEN gone = 0;
    END LOOP;
END $$;
