-- What autovacuum does by itself within an hour, at once: an hour of the bench takes seconds. With the thresholds of
-- the server's own settings.
SELECT pg_sleep(0.6);
SELECT format('VACUUM (ANALYZE) %I', s.relname)
FROM pg_stat_user_tables s JOIN pg_class ON pg_class.oid = s.relid
WHERE n_dead_tup > current_setting('autovacuum_vacuum_threshold')::int
                   + current_setting('autovacuum_vacuum_scale_factor')::float * greatest(reltuples, 0)
   OR n_ins_since_vacuum > current_setting('autovacuum_vacuum_insert_threshold')::int
                   + current_setting('autovacuum_vacuum_insert_scale_factor')::float * greatest(reltuples, 0)
\gexec
