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
    # What the indexes cost is most of what a row costs, so there are fewer, and smaller ones.
    # - How old a run is says when it began, not when it was recorded. That is an instance's claim, but bounded on both
    #   sides (events.py, store.py): it keeps a row for a minute too long at most, or lets it go a week too early, and
    #   only rows of the instance's own runs, of which it need not have told at all.
    # - Algorithms are compared as numbers. `hashtext` is what hash indexes of texts keep, so it stays what it is.
    # - The steps of a pipeline, `<root>-<step>`, are found by their own keys, and only other runs by their root. That
    #   takes keys in the order of their bytes, which "C" is in every database. What was known of how a column's values
    #   are spread goes with its order, and without it roots would be looked for in the whole table: so ANALYZE.
    """
    ALTER TABLE runs DROP COLUMN recorded_at;
    DROP INDEX runs_algorithm;
    DROP INDEX runs_root;
    ALTER TABLE runs ALTER COLUMN run TYPE text COLLATE "C", ALTER COLUMN root TYPE text COLLATE "C";
    CREATE INDEX runs_algorithm ON runs (hashtext(algorithm), begun_at);
    CREATE INDEX runs_root ON runs (root) WHERE root <> run AND NOT starts_with(run, root || '-');
    ANALYZE runs;
    """,
)
