-- Parity reports that were kept, in short.

-- name: history
-- Newest first. Reports of before have recall@10 in what was measured, later ones in the comparisons with exact search.
SELECT r.id, r.created_at, r.space, r.passed,
       ARRAY(SELECT f ->> 'name' FROM jsonb_path_query(r.report, '$.findings[*]') WITH ORDINALITY AS found (f, n)
             WHERE NOT (f ->> 'passed')::boolean ORDER BY n) AS failed,
       (SELECT sum((p ->> 'published')::bigint)::bigint
        FROM jsonb_path_query(r.report, '$.partitions[*]') AS p) AS published,
       coalesce(
           (SELECT min((c #>> '{summary,mean}')::float8)
            FROM jsonb_path_query(r.report, '$.details.comparisons[*] ? (@.measure == "recall" && @.k == 10 && @.filter == null)') AS c),
           (SELECT min(share::float8)
            FROM (SELECT jsonb_path_query(r.report, '$.details.recall.*.stored') AS share
                  UNION ALL SELECT jsonb_path_query(r.report, '$.details.recall.*.perturbed')) AS measured
            WHERE jsonb_typeof(share) = 'number')) AS recall_10_min
FROM store.parity_reports r
WHERE :'space'::text IS NULL OR r.space = :'space'
ORDER BY r.id DESC LIMIT :'at_most';
