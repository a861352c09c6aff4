"""The pre-warmer's tables, as the statements that made them, in order. A statement that has shipped never changes."""

MIGRATIONS = (
    """
    CREATE TABLE starts (
        instance   text PRIMARY KEY,
        launcher   text NOT NULL,
        algorithm  text NOT NULL,
        version    text NOT NULL,
        kind       text NOT NULL,
        reason     text NOT NULL,
        after      text NOT NULL,
        caller     text NOT NULL,
        -- Seconds since the epoch; 0: not yet.
        started_at double precision NOT NULL,
        ready_at   double precision NOT NULL,
        used_at    double precision NOT NULL,
        ended_at   double precision NOT NULL,
        held_s     double precision NOT NULL,
        saved_s    double precision NOT NULL,
        in_time    boolean NOT NULL,
        gpu        double precision NOT NULL
    );
    CREATE INDEX starts_started ON starts (started_at);
    CREATE INDEX starts_algorithm ON starts (algorithm, started_at);
    CREATE INDEX starts_up ON starts (instance) WHERE ended_at = 0;

    CREATE TABLE calls (
        minute bigint PRIMARY KEY,
        calls  bigint NOT NULL,
        cold   bigint NOT NULL
    );

    CREATE TABLE snapshots (
        number   bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        made_at  timestamptz NOT NULL DEFAULT now(),
        checksum bytea NOT NULL,
        data     bytea NOT NULL,
        -- Why it could not be used; empty while nothing is known to be wrong with it.
        damage   text NOT NULL DEFAULT ''
    );
    """,
    """
    CREATE TABLE spared (
        run       text PRIMARY KEY,
        root      text NOT NULL,
        algorithm text NOT NULL,
        version   text NOT NULL,
        caller    text NOT NULL,
        at        double precision NOT NULL,
        seconds   double precision NOT NULL,
        why       text NOT NULL,
        -- How many calls it stands for: of busy versions, one in so many is seen.
        count     integer NOT NULL
    );
    CREATE INDEX spared_at ON spared (at);

    CREATE TABLE savings (
        minute  bigint NOT NULL,
        why     text NOT NULL,
        calls   bigint NOT NULL,
        seconds double precision NOT NULL,
        PRIMARY KEY (minute, why)
    );
    INSERT INTO savings
        SELECT floor(used_at / 60)::bigint, kind, count(*), sum(saved_s) FROM starts WHERE saved_s > 0 GROUP BY 1, 2;
    """,
)
