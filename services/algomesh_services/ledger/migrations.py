"""The ledger's table, as the statements that made it, in order. A statement that has shipped never changes."""

MIGRATIONS = (
    """
    CREATE TABLE runs (
        run         text NOT NULL,
        attempt     integer NOT NULL,
        root        text NOT NULL,
        parent      text NOT NULL,
        algorithm   text NOT NULL,
        version     text NOT NULL,
        caller      text NOT NULL,
        root_caller text NOT NULL,
        instance    text NOT NULL,
        state       text NOT NULL,
        queued_at   double precision NOT NULL,
        started_at  double precision NOT NULL,
        ended_at    double precision NOT NULL,
        compute_ms  double precision NOT NULL,
        cold_ms     double precision NOT NULL,
        error       text NOT NULL,
        -- What the run is listed by: when it began, as far as known when it was first heard of.
        begun_at    double precision NOT NULL,
        recorded_at timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (run, attempt)
    );
    CREATE INDEX runs_begun ON runs (begun_at);
    CREATE INDEX runs_algorithm ON runs (algorithm, begun_at);
    CREATE INDEX runs_root ON runs (root);
    CREATE INDEX runs_recorded ON runs (recorded_at);
    CREATE INDEX runs_running ON runs (instance) WHERE state = 'running';
    """,
    # A root is found by its own key: only the others need an entry, and calls that call nobody need none.
    """
    DROP INDEX runs_root;
    CREATE INDEX runs_root ON runs (root) WHERE root <> run;
    """,
)
