-- The ledger of requests to embedding services.

-- name: reserve
-- Entered before it is sent, unless it would exceed the budget: then no row comes back.
INSERT INTO store.embedding_requests (space, kind, model, way, run_id, texts, tokens, usd)
SELECT :'space', :'kind', :'model', :'way', :'run_id', :'texts', :'tokens', :'usd'
WHERE :'max_usd'::double precision IS NULL
   OR (SELECT coalesce(sum(coalesce(usd, tokens * :'usd_per_million'::double precision / 1e6, 0) + usd_at_risk), 0)
       FROM store.embedding_requests WHERE space = :'space')
      + coalesce(:'usd'::double precision, 0) <= :'max_usd'
RETURNING id;

-- name: book_risk
-- An attempt may have been billed without an answer, and the request is to be tried again.
UPDATE store.embedding_requests SET usd_at_risk = usd_at_risk + :'usd_at_risk' WHERE id = :'id';

-- name: settle
UPDATE store.embedding_requests
SET state = :'state', tokens = :'tokens', usd = :'usd', usd_at_risk = usd_at_risk + :'usd_at_risk', ended_at = now()
WHERE id = :'id';

-- name: mark_lost
-- Whoever sent these is gone, and nobody knows whether they were answered: they count as spent.
UPDATE store.embedding_requests
SET state = 'lost', usd_at_risk = usd_at_risk + coalesce(usd, 0), usd = 0, ended_at = now()
WHERE space = :'space' AND way = 'request' AND state = 'in_flight';

-- name: spent
-- Requests entered when their price was not known are counted at the price of today, where there is one.
SELECT coalesce(sum(coalesce(usd, tokens * :'usd_per_million'::double precision / 1e6)), 0) AS usd, coalesce(sum(usd_at_risk), 0) AS usd_at_risk,
       coalesce(sum(tokens) FILTER (WHERE state = 'answered'), 0)::bigint AS tokens,
       count(*) FILTER (WHERE state = 'answered') AS requests
FROM store.embedding_requests WHERE space = :'space';

-- name: spend_by_run
SELECT run_id, kind || '_embeddings' AS asset, model, way, count(*) AS requests, sum(texts)::bigint AS texts,
       coalesce(sum(tokens) FILTER (WHERE state = 'answered'), 0)::bigint AS tokens,
       sum(usd) AS usd, sum(usd_at_risk) AS usd_at_risk, min(sent_at)::text AS first_sent_at
FROM store.embedding_requests WHERE space = :'space'
GROUP BY run_id, kind, model, way ORDER BY min(sent_at) DESC LIMIT :'limit';
