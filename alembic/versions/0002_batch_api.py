"""The whole batch API: uploads, pause, retry, reuse, line tags, approvals, webhooks.

Revision: 0002

Columns of filled tables get a server default: the rows that are there are batches without any of it.
"""

import sqlalchemy as sa

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "broker_approval",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("project", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("proposer", sa.String(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.Column("outcome", sa.String(), nullable=True),
        sa.Column("decided_by", sa.String(), nullable=True),
        sa.Column("decided_us", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    with op.batch_alter_table("broker_approval") as batch_op:
        batch_op.create_index("ix_broker_approval_project", ["project"], unique=False)
        batch_op.create_index("ix_broker_approval_subject", ["subject"], unique=False)

    op.create_table(
        "broker_delivery",
        sa.Column("webhook", sa.String(), nullable=False),
        sa.Column("event", sa.String(), nullable=False),
        sa.Column("batch", sa.String(), nullable=False),
        sa.Column("type", sa.String(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("next_us", sa.BigInteger(), nullable=True),
        sa.Column("last_us", sa.BigInteger(), nullable=True),
        sa.Column("delivered_us", sa.BigInteger(), nullable=True),
        sa.Column("gave_up_us", sa.BigInteger(), nullable=True),
        sa.Column("last_status", sa.Integer(), nullable=True),
        sa.Column("last_error", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("webhook", "event"),
    )
    with op.batch_alter_table("broker_delivery") as batch_op:
        batch_op.create_index("ix_broker_delivery_batch", ["batch"], unique=False)
        batch_op.create_index("ix_broker_delivery_next_us", ["next_us"], unique=False)

    op.create_table(
        "broker_waiting_told",
        sa.Column("batch", sa.String(), nullable=False),
        sa.Column("cause", sa.String(), nullable=True),
        sa.Column("since_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("batch"),
    )

    op.create_table(
        "broker_webhook",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("project", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("url", sa.String(), nullable=False),
        sa.Column("secret", sa.LargeBinary(), nullable=False),
        sa.Column("secret_hint", sa.String(), nullable=False),
        sa.Column("earlier_secret", sa.LargeBinary(), nullable=True),
        sa.Column("earlier_until_us", sa.BigInteger(), nullable=True),
        sa.Column("events", sa.JSON(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.Column("updated_us", sa.BigInteger(), nullable=False),
        sa.Column("failing_since_us", sa.BigInteger(), nullable=True),
        sa.Column("disabled_us", sa.BigInteger(), nullable=True),
        sa.Column("disabled_reason", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    with op.batch_alter_table("broker_webhook") as batch_op:
        batch_op.create_index("ix_broker_webhook_project", ["project"], unique=False)

    op.create_table(
        "jobs_upload",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("project", sa.String(), nullable=False),
        sa.Column("principal", sa.String(), nullable=False),
        sa.Column("purpose", sa.String(), nullable=False),
        sa.Column("filename", sa.String(), nullable=False),
        sa.Column("mime_type", sa.String(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.Column("expires_us", sa.BigInteger(), nullable=False),
        sa.Column("file_expires_s", sa.BigInteger(), nullable=True),
        sa.Column("file_id", sa.String(), nullable=True),
        sa.Column("collected_us", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    with op.batch_alter_table("jobs_upload") as batch_op:
        batch_op.create_index("ix_jobs_upload_collected_us", ["collected_us"], unique=False)
        batch_op.create_index("ix_jobs_upload_expires_us", ["expires_us"], unique=False)
        batch_op.create_index("ix_jobs_upload_project", ["project"], unique=False)

    op.create_table(
        "jobs_upload_part",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("upload_id", sa.String(), nullable=False),
        sa.Column("object_key", sa.String(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["upload_id"],
            ["jobs_upload.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("object_key"),
    )
    with op.batch_alter_table("jobs_upload_part") as batch_op:
        batch_op.create_index("ix_jobs_upload_part_upload_id", ["upload_id"], unique=False)

    op.create_table(
        "jobs_answer",
        sa.Column("project", sa.String(), nullable=False),
        sa.Column("request_sha256", sa.String(), nullable=False),
        sa.Column("batch_id", sa.String(), nullable=False),
        sa.Column("part_key", sa.String(), nullable=False),
        sa.Column("part_sha256", sa.String(), nullable=False),
        sa.Column("idx", sa.Integer(), nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger(), nullable=False),
        sa.Column("completion_tokens", sa.BigInteger(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["batch_id"],
            ["jobs_batch.id"],
        ),
        sa.PrimaryKeyConstraint("project", "request_sha256"),
    )
    with op.batch_alter_table("jobs_answer") as batch_op:
        batch_op.create_index("ix_jobs_answer_batch_id", ["batch_id"], unique=False)

    op.create_table(
        "jobs_line_tag",
        sa.Column("batch_id", sa.String(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("value", sa.String(), nullable=False),
        sa.Column("lines", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["batch_id"],
            ["jobs_batch.id"],
        ),
        sa.PrimaryKeyConstraint("batch_id", "key", "value"),
    )
    with op.batch_alter_table("broker_project") as batch_op:
        batch_op.add_column(sa.Column("limits", sa.JSON(), nullable=True))
        batch_op.add_column(sa.Column("approve_above_nano", sa.BigInteger(), nullable=True))

    with op.batch_alter_table("jobs_batch") as batch_op:
        batch_op.add_column(sa.Column("asked_model", sa.String(), nullable=True))
        batch_op.add_column(sa.Column("paused_us", sa.BigInteger(), nullable=True))
        batch_op.add_column(sa.Column("invalid", sa.Integer(), nullable=False, server_default="0"))
        batch_op.add_column(sa.Column("reused", sa.Integer(), nullable=False, server_default="0"))
        batch_op.add_column(sa.Column("reused_input_tokens", sa.BigInteger(), nullable=False, server_default="0"))
        batch_op.add_column(sa.Column("reused_output_tokens", sa.BigInteger(), nullable=False, server_default="0"))
        batch_op.add_column(sa.Column("saved_nano", sa.BigInteger(), nullable=False, server_default="0"))
        batch_op.add_column(sa.Column("output_expires_s", sa.BigInteger(), nullable=True))
        batch_op.add_column(sa.Column("retry_of", sa.String(), nullable=True))
        batch_op.add_column(sa.Column("events", sa.Integer(), nullable=False, server_default="0"))
        batch_op.add_column(sa.Column("revision", sa.String(), nullable=True))
        batch_op.add_column(sa.Column("remembered_us", sa.BigInteger(), nullable=True))
        batch_op.create_index("ix_jobs_batch_retry_of", ["retry_of"], unique=False)
        batch_op.create_index("ix_jobs_batch_revision", ["revision"], unique=False)

    with op.batch_alter_table("jobs_lease") as batch_op:
        batch_op.add_column(sa.Column("told_us", sa.BigInteger(), nullable=True))

    with op.batch_alter_table("jobs_outbox") as batch_op:
        batch_op.add_column(sa.Column("number", sa.Integer(), nullable=False, server_default="0"))
    op.execute(
        "UPDATE jobs_outbox SET number = (SELECT count(*) FROM jobs_outbox AS earlier"
        " WHERE earlier.batch_id = jobs_outbox.batch_id AND earlier.id <= jobs_outbox.id)"
    )
    op.execute(
        "UPDATE jobs_batch SET events = (SELECT count(*) FROM jobs_outbox WHERE jobs_outbox.batch_id = jobs_batch.id)"
    )
    with op.batch_alter_table("jobs_outbox") as batch_op:
        batch_op.create_unique_constraint("jobs_outbox_number", ["batch_id", "number"])

    with op.batch_alter_table("jobs_shard") as batch_op:
        batch_op.add_column(sa.Column("prefix", sa.String(), nullable=True))
        batch_op.add_column(sa.Column("reserved", sa.JSON(), nullable=False, server_default="[]"))
        batch_op.add_column(sa.Column("reserved_lines", sa.Integer(), nullable=False, server_default="0"))
        batch_op.add_column(sa.Column("follows", sa.JSON(), nullable=False, server_default="{}"))


def downgrade() -> None:
    with op.batch_alter_table("jobs_shard") as batch_op:
        batch_op.drop_column("follows")
        batch_op.drop_column("reserved_lines")
        batch_op.drop_column("reserved")
        batch_op.drop_column("prefix")

    with op.batch_alter_table("jobs_lease") as batch_op:
        batch_op.drop_column("told_us")

    with op.batch_alter_table("jobs_outbox") as batch_op:
        batch_op.drop_constraint("jobs_outbox_number", type_="unique")
        batch_op.drop_column("number")

    with op.batch_alter_table("jobs_batch") as batch_op:
        batch_op.drop_index("ix_jobs_batch_revision")
        batch_op.drop_index("ix_jobs_batch_retry_of")
        batch_op.drop_column("events")
        batch_op.drop_column("remembered_us")
        batch_op.drop_column("revision")
        batch_op.drop_column("retry_of")
        batch_op.drop_column("output_expires_s")
        batch_op.drop_column("saved_nano")
        batch_op.drop_column("reused_output_tokens")
        batch_op.drop_column("reused_input_tokens")
        batch_op.drop_column("reused")
        batch_op.drop_column("invalid")
        batch_op.drop_column("paused_us")
        batch_op.drop_column("asked_model")

    with op.batch_alter_table("broker_project") as batch_op:
        batch_op.drop_column("approve_above_nano")
        batch_op.drop_column("limits")

    op.drop_table("jobs_line_tag")
    with op.batch_alter_table("jobs_answer") as batch_op:
        batch_op.drop_index("ix_jobs_answer_batch_id")

    op.drop_table("jobs_answer")
    with op.batch_alter_table("jobs_upload_part") as batch_op:
        batch_op.drop_index("ix_jobs_upload_part_upload_id")

    op.drop_table("jobs_upload_part")
    with op.batch_alter_table("jobs_upload") as batch_op:
        batch_op.drop_index("ix_jobs_upload_project")
        batch_op.drop_index("ix_jobs_upload_expires_us")
        batch_op.drop_index("ix_jobs_upload_collected_us")

    op.drop_table("jobs_upload")
    with op.batch_alter_table("broker_webhook") as batch_op:
        batch_op.drop_index("ix_broker_webhook_project")

    op.drop_table("broker_webhook")
    op.drop_table("broker_waiting_told")
    with op.batch_alter_table("broker_delivery") as batch_op:
        batch_op.drop_index("ix_broker_delivery_next_us")
        batch_op.drop_index("ix_broker_delivery_batch")

    op.drop_table("broker_delivery")
    with op.batch_alter_table("broker_approval") as batch_op:
        batch_op.drop_index("ix_broker_approval_subject")
        batch_op.drop_index("ix_broker_approval_project")

    op.drop_table("broker_approval")
