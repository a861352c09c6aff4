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
)
