"""Users, sessions, documents, passages, outbox.

No GRANT: the platform's `ALTER DEFAULT PRIVILEGES FOR ROLE smart_audit_owner` gives the application's role its rights.
"""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create everything."""
    op.execute("CREATE EXTENSION IF NOT EXISTS vector")
    op.execute(
        """
        CREATE TABLE users (
            id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            username text NOT NULL UNIQUE CHECK (username <> ''),
            password_hash text NOT NULL,
            created_at timestamptz NOT NULL DEFAULT now()
        )
        """
    )
    op.execute(
        """
        CREATE TABLE sessions (
            token_hash bytea PRIMARY KEY,
            user_id bigint NOT NULL REFERENCES users ON DELETE CASCADE,
            created_at timestamptz NOT NULL DEFAULT now(),
            expires_at timestamptz NOT NULL
        )
        """
    )
    op.execute("CREATE INDEX sessions_expires_at ON sessions (expires_at)")
    op.execute("CREATE INDEX sessions_user_id ON sessions (user_id)")
    op.execute(
        """
        CREATE TABLE documents (
            id uuid PRIMARY KEY,
            filename text NOT NULL,
            content_type text NOT NULL,
            size_bytes bigint NOT NULL CHECK (size_bytes > 0),
            sha256 bytea NOT NULL,
            object_key text NOT NULL UNIQUE,
            status text NOT NULL DEFAULT 'queued' CHECK (status IN ('queued', 'processing', 'done', 'failed')),
            reason text CHECK ((status = 'failed') = (reason IS NOT NULL)),
            attempts integer NOT NULL DEFAULT 0,
            last_error text,
            -- The claim fences: who took the document last holds it, whatever earlier holders still believe.
            claim uuid CHECK ((status = 'processing') = (claim IS NOT NULL)),
            lease_until timestamptz CHECK ((status = 'processing') = (lease_until IS NOT NULL)),
            passages integer NOT NULL DEFAULT 0,
            traceparent text NOT NULL,
            uploaded_by bigint REFERENCES users ON DELETE SET NULL,
            created_at timestamptz NOT NULL DEFAULT now(),
            queued_at timestamptz NOT NULL DEFAULT now(),
            processed_at timestamptz
        )
        """
    )
    op.execute("CREATE INDEX documents_created_at ON documents (created_at DESC, id DESC)")
    op.execute("CREATE INDEX documents_unfinished ON documents (queued_at) WHERE status IN ('queued', 'processing')")
    op.execute("CREATE INDEX documents_uploaded_by ON documents (uploaded_by)")
    op.execute(
        """
        CREATE TABLE chunks (
            document_id uuid NOT NULL REFERENCES documents ON DELETE CASCADE,
            ordinal integer NOT NULL,
            passage text NOT NULL,
            embedding vector(384) NOT NULL,
            PRIMARY KEY (document_id, ordinal)
        )
        """
    )
    op.execute("CREATE INDEX chunks_embedding ON chunks USING hnsw (embedding vector_cosine_ops)")
    op.execute(
        """
        CREATE TABLE outbox (
            id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            kind text NOT NULL CHECK (kind IN ('process', 'delete_object')),
            document_id uuid CHECK ((kind = 'process') = (document_id IS NOT NULL)),
            object_key text CHECK ((kind = 'delete_object') = (object_key IS NOT NULL)),
            traceparent text NOT NULL,
            attempts integer NOT NULL DEFAULT 0,
            created_at timestamptz NOT NULL DEFAULT now(),
            available_at timestamptz NOT NULL DEFAULT now()
        )
        """
    )
    op.execute("CREATE INDEX outbox_available_at ON outbox (kind, available_at)")
    op.execute("CREATE INDEX outbox_document_id ON outbox (document_id)")


def downgrade() -> None:
    """Drop everything but the extension, which others may use."""
    op.execute("DROP TABLE outbox, chunks, documents, sessions, users")
