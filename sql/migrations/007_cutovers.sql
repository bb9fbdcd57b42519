-- Where reads were moved from and to, and on what proof.

CREATE TABLE store.cutovers (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at         timestamptz NOT NULL DEFAULT now(),
    from_space text NOT NULL,                 -- no foreign keys: what happened is remembered when a space is gone
    to_space   text NOT NULL,
    by         text NOT NULL,
    report     bigint                         -- store.parity_reports.id; null for a way back
);
COMMENT ON TABLE store.cutovers IS 'One row each time reads were moved to another embedding space. The last one is what cutover with the option back undoes.';
