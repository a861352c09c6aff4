"""The registry's tables, as the statements that made them, in order. A statement that has shipped never changes."""

MIGRATIONS = (
    """
    CREATE TABLE keys (
        id         text PRIMARY KEY,
        name       text NOT NULL,
        hash       bytea NOT NULL,
        scopes     text[] NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now(),
        revoked_at timestamptz
    );
    CREATE UNIQUE INDEX keys_name ON keys (name) WHERE revoked_at IS NULL;

    CREATE TABLE versions (
        owner        text NOT NULL,
        name         text NOT NULL,
        version      text NOT NULL,
        digest       text NOT NULL,
        manifest     bytea NOT NULL,
        calls        text[] NOT NULL,
        timeout_s    double precision,
        attempts     integer NOT NULL,
        min_instances integer NOT NULL,
        description  text NOT NULL,
        published_at timestamptz NOT NULL DEFAULT now(),
        published_by text NOT NULL,
        PRIMARY KEY (owner, name, version)
    );
    """,
    """
    ALTER TABLE versions
        ADD COLUMN pipeline bytea NOT NULL DEFAULT '',
        ADD COLUMN takes    text NOT NULL DEFAULT '',
        ADD COLUMN gives    text NOT NULL DEFAULT '',
        ADD COLUMN cache_s  double precision NOT NULL DEFAULT 0,
        ADD COLUMN takes_parts boolean NOT NULL DEFAULT false;

    CREATE TABLE aliases (
        owner      text NOT NULL,
        name       text NOT NULL,
        alias      text NOT NULL,
        versions   text[] NOT NULL,
        weights    integer[] NOT NULL,
        changed_at timestamptz NOT NULL DEFAULT now(),
        changed_by text NOT NULL,
        PRIMARY KEY (owner, name, alias)
    );
    """,
)
