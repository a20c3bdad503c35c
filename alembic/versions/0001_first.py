"""The first schema of all rooms, with the ledger's append-only triggers.

Revision: 0001

The triggers' text is in ledger/triggers.py; a test pins its digest, so that a change of it comes with a migration.
"""

import sqlalchemy as sa

from alembic import op
from ledger.triggers import create_statements, drop_statements

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "broker_assignment",
        sa.Column("batch", sa.String(), nullable=False),
        sa.Column("offer_key", sa.String(), nullable=False),
        sa.Column("plan", sa.String(), nullable=False),
        sa.Column("rank", sa.Integer(), nullable=False),
        sa.Column("cost_nano", sa.BigInteger(), nullable=False),
        sa.Column("end_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("batch", "offer_key"),
    )
    op.create_index("ix_broker_assignment_plan", "broker_assignment", ["plan"], unique=False)
    op.create_table(
        "broker_key",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("secret_sha256", sa.String(), nullable=False),
        sa.Column("principal", sa.String(), nullable=False),
        sa.Column("project", sa.String(), nullable=True),
        sa.Column("roles", sa.JSON(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.Column("expires_us", sa.BigInteger(), nullable=True),
        sa.Column("revoked_us", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_broker_key_project", "broker_key", ["project"], unique=False)
    op.create_table(
        "broker_measured",
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("precision", sa.String(), nullable=False),
        sa.Column("accelerator", sa.String(), nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger(), nullable=False),
        sa.Column("completion_tokens", sa.BigInteger(), nullable=False),
        sa.Column("busy_ms", sa.BigInteger(), nullable=False),
        sa.Column("loads", sa.Integer(), nullable=False),
        sa.Column("load_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("model", "precision", "accelerator"),
    )
    op.create_table(
        "broker_plan",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.Column("snapshot_sha256", sa.String(), nullable=False),
        sa.Column("snapshot", sa.LargeBinary(), nullable=False),
        sa.Column("plan", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_broker_plan_created_us", "broker_plan", ["created_us"], unique=False)
    op.create_table(
        "broker_policy",
        sa.Column("hash", sa.String(), nullable=False),
        sa.Column("body", sa.JSON(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("hash"),
    )
    op.create_table(
        "broker_project",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.Column("policy", sa.JSON(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("name"),
    )
    op.create_table(
        "broker_quote",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("project", sa.String(), nullable=False),
        sa.Column("batch", sa.String(), nullable=True),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.Column("cost_nano", sa.BigInteger(), nullable=True),
        sa.Column("end_us", sa.BigInteger(), nullable=True),
        sa.Column("body", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_broker_quote_batch", "broker_quote", ["batch"], unique=False)
    op.create_index("ix_broker_quote_project", "broker_quote", ["project"], unique=False)
    op.create_table(
        "broker_waiting",
        sa.Column("batch", sa.String(), nullable=False),
        sa.Column("plan", sa.String(), nullable=False),
        sa.Column("waiting_on", sa.String(), nullable=False),
        sa.Column("reasons", sa.JSON(), nullable=False),
        sa.Column("relaxations", sa.JSON(), nullable=False),
        sa.Column("since_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("batch"),
    )
    op.create_table(
        "broker_worker",
        sa.Column("rental", sa.String(), nullable=False),
        sa.Column("bootstrap_sha256", sa.String(), nullable=False),
        sa.Column("bootstrap_expires_us", sa.BigInteger(), nullable=False),
        sa.Column("pubkey", sa.String(), nullable=True),
        sa.Column("session", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.Column("hello_us", sa.BigInteger(), nullable=True),
        sa.Column("ready_us", sa.BigInteger(), nullable=True),
        sa.Column("seen_us", sa.BigInteger(), nullable=True),
        sa.Column("work_us", sa.BigInteger(), nullable=True),
        sa.Column("gone_us", sa.BigInteger(), nullable=True),
        sa.Column("drain_reason", sa.String(), nullable=True),
        sa.Column("notice_us", sa.BigInteger(), nullable=True),
        sa.Column("error", sa.String(), nullable=True),
        sa.Column("hello", sa.JSON(), nullable=True),
        sa.Column("metrics", sa.JSON(), nullable=True),
        sa.PrimaryKeyConstraint("rental"),
    )
    op.create_table(
        "jobs_file",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("project", sa.String(), nullable=False),
        sa.Column("purpose", sa.String(), nullable=False),
        sa.Column("filename", sa.String(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("object_key", sa.String(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.Column("expires_us", sa.BigInteger(), nullable=True),
        sa.Column("deleted_us", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("object_key"),
    )
    op.create_index("ix_jobs_file_project", "jobs_file", ["project"], unique=False)
    op.create_table(
        "jobs_outbox",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("batch_id", sa.String(), nullable=False),
        sa.Column("project", sa.String(), nullable=False),
        sa.Column("payload", sa.JSON(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.Column("delivered_us", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_jobs_outbox_batch_id", "jobs_outbox", ["batch_id"], unique=False)
    op.create_index("ix_jobs_outbox_delivered_us", "jobs_outbox", ["delivered_us"], unique=False)
    op.create_table(
        "jobs_revoked_placement",
        sa.Column("placement_id", sa.String(), nullable=False),
        sa.Column("revoked_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("placement_id"),
    )
    op.create_table(
        "ledger_entry",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("occurred_at_us", sa.BigInteger(), nullable=False),
        sa.Column("recorded_at_us", sa.BigInteger(), nullable=False),
        sa.Column("period", sa.String(), nullable=False),
        sa.Column("actor", sa.String(), nullable=False),
        sa.Column("project", sa.String(), nullable=True),
        sa.Column("batch", sa.String(), nullable=True),
        sa.Column("rental", sa.String(), nullable=True),
        sa.Column("offer_key", sa.String(), nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=True),
        sa.Column("corrects", sa.String(), nullable=True),
        sa.Column("hold", sa.String(), nullable=True),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("sealed", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("key"),
        sa.UniqueConstraint("seq"),
    )
    op.create_index("ix_ledger_entry_batch", "ledger_entry", ["batch"], unique=False)
    op.create_index("ix_ledger_entry_hold", "ledger_entry", ["hold"], unique=False)
    op.create_index("ix_ledger_entry_kind", "ledger_entry", ["kind"], unique=False)
    op.create_index("ix_ledger_entry_project", "ledger_entry", ["project"], unique=False)
    op.create_index("ix_ledger_entry_rental_seq", "ledger_entry", ["rental", "seq"], unique=False)
    op.create_index(
        "ux_ledger_entry_hold_opened",
        "ledger_entry",
        ["hold"],
        unique=True,
        sqlite_where=sa.text("kind = 'hold.open'"),
        postgresql_where=sa.text("kind = 'hold.open'"),
    )
    op.create_index(
        "ux_ledger_entry_hold_resolved",
        "ledger_entry",
        ["hold"],
        unique=True,
        sqlite_where=sa.text("kind IN ('hold.void', 'hold.expire')"),
        postgresql_where=sa.text("kind IN ('hold.void', 'hold.expire')"),
    )
    op.create_table(
        "ledger_head",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "ledger_hold",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("project", sa.String(), nullable=False),
        sa.Column("batch", sa.String(), nullable=True),
        sa.Column("rental", sa.String(), nullable=True),
        sa.Column("offer_key", sa.String(), nullable=True),
        sa.Column("nano", sa.BigInteger(), nullable=False),
        sa.Column("drawn_nano", sa.BigInteger(), nullable=False),
        sa.Column("remaining_nano", sa.BigInteger(), nullable=False),
        sa.Column("opened_seq", sa.BigInteger(), nullable=False),
        sa.Column("opened_at_us", sa.BigInteger(), nullable=False),
        sa.Column("resolved", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_ledger_hold_project", "ledger_hold", ["project"], unique=False)
    op.create_index("ix_ledger_hold_rental", "ledger_hold", ["rental"], unique=False)
    op.create_index("ix_ledger_hold_resolved", "ledger_hold", ["resolved"], unique=False)
    op.create_table(
        "markets_offer",
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("market", sa.String(), nullable=False),
        sa.Column("accelerator", sa.String(), nullable=False),
        sa.Column("pricing", sa.String(), nullable=False),
        sa.Column("country", sa.String(), nullable=True),
        sa.Column("price_nano_hour", sa.BigInteger(), nullable=True),
        sa.Column("capacity", sa.Integer(), nullable=True),
        sa.Column("quarantined", sa.String(), nullable=True),
        sa.Column("observed_us", sa.BigInteger(), nullable=False),
        sa.Column("seen_us", sa.BigInteger(), nullable=False),
        sa.Column("gone_us", sa.BigInteger(), nullable=True),
        sa.Column("record", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("key"),
    )
    op.create_index("ix_markets_offer_market", "markets_offer", ["market"], unique=False)
    op.create_table(
        "markets_poll",
        sa.Column("market", sa.String(), nullable=False),
        sa.Column("ok_us", sa.BigInteger(), nullable=True),
        sa.Column("failed_us", sa.BigInteger(), nullable=True),
        sa.Column("error", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("market"),
    )
    op.create_table(
        "markets_rental",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("market", sa.String(), nullable=False),
        sa.Column("offer_key", sa.String(), nullable=False),
        sa.Column("project", sa.String(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("precision", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("price_nano_hour", sa.BigInteger(), nullable=False),
        sa.Column("pricing", sa.String(), nullable=False),
        sa.Column("granularity_s", sa.Integer(), nullable=False),
        sa.Column("minimum_s", sa.Integer(), nullable=False),
        sa.Column("facts", sa.JSON(), nullable=False),
        sa.Column("purpose", sa.JSON(), nullable=False),
        sa.Column("market_facts", sa.JSON(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.Column("started_us", sa.BigInteger(), nullable=True),
        sa.Column("last_seen_us", sa.BigInteger(), nullable=True),
        sa.Column("release_us", sa.BigInteger(), nullable=True),
        sa.Column("release_reason", sa.String(), nullable=True),
        sa.Column("ended_us", sa.BigInteger(), nullable=True),
        sa.Column("end_reason", sa.String(), nullable=True),
        sa.Column("exit_status", sa.Integer(), nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("error", sa.String(), nullable=True),
        sa.Column("settled", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_markets_rental_created_us", "markets_rental", ["created_us"], unique=False)
    op.create_index("ix_markets_rental_market", "markets_rental", ["market"], unique=False)
    op.create_index("ix_markets_rental_offer_key", "markets_rental", ["offer_key"], unique=False)
    op.create_index("ix_markets_rental_project", "markets_rental", ["project"], unique=False)
    op.create_index("ix_markets_rental_settled", "markets_rental", ["settled"], unique=False)
    op.create_index("ix_markets_rental_state", "markets_rental", ["state"], unique=False)
    op.create_table(
        "jobs_batch",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("project", sa.String(), nullable=False),
        sa.Column("principal", sa.String(), nullable=False),
        sa.Column("endpoint", sa.String(), nullable=False),
        sa.Column("model", sa.String(), nullable=True),
        sa.Column("input_file_id", sa.String(), nullable=False),
        sa.Column("input_key", sa.String(), nullable=False),
        sa.Column("completion_window", sa.String(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("ending", sa.String(), nullable=True),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.Column("expires_us", sa.BigInteger(), nullable=False),
        sa.Column("in_progress_us", sa.BigInteger(), nullable=True),
        sa.Column("finalizing_us", sa.BigInteger(), nullable=True),
        sa.Column("completed_us", sa.BigInteger(), nullable=True),
        sa.Column("failed_us", sa.BigInteger(), nullable=True),
        sa.Column("expired_us", sa.BigInteger(), nullable=True),
        sa.Column("cancelling_us", sa.BigInteger(), nullable=True),
        sa.Column("cancelled_us", sa.BigInteger(), nullable=True),
        sa.Column("deadline_us", sa.BigInteger(), nullable=True),
        sa.Column("total", sa.Integer(), nullable=False),
        sa.Column("completed", sa.Integer(), nullable=False),
        sa.Column("failed", sa.Integer(), nullable=False),
        sa.Column("expired", sa.Integer(), nullable=False),
        sa.Column("cancelled", sa.Integer(), nullable=False),
        sa.Column("input_tokens", sa.BigInteger(), nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), nullable=False),
        sa.Column("used_input_tokens", sa.BigInteger(), nullable=False),
        sa.Column("used_output_tokens", sa.BigInteger(), nullable=False),
        sa.Column("used_cached_tokens", sa.BigInteger(), nullable=False),
        sa.Column("output_file_id", sa.String(), nullable=True),
        sa.Column("error_file_id", sa.String(), nullable=True),
        sa.Column("errors", sa.JSON(), nullable=True),
        sa.Column("errors_total", sa.Integer(), nullable=False),
        sa.Column("metadata", sa.JSON(), nullable=True),
        sa.Column("wishes", sa.JSON(), nullable=True),
        sa.Column("policy_hash", sa.String(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("line_order", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["input_file_id"],
            ["jobs_file.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_jobs_batch_input_file_id", "jobs_batch", ["input_file_id"], unique=False)
    op.create_index("jobs_batch_by_project", "jobs_batch", ["project", "id"], unique=False)
    op.create_index("jobs_batch_by_status", "jobs_batch", ["status"], unique=False)
    op.create_table(
        "ledger_posting",
        sa.Column("entry_id", sa.String(), nullable=False),
        sa.Column("line", sa.Integer(), nullable=False),
        sa.Column("account", sa.String(), nullable=False),
        sa.Column("unit", sa.String(), nullable=False),
        sa.Column("nano", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("nano <> 0", name="ck_ledger_posting_nano"),
        sa.ForeignKeyConstraint(
            ["entry_id"],
            ["ledger_entry.id"],
        ),
        sa.PrimaryKeyConstraint("entry_id", "line"),
    )
    op.create_index("ix_ledger_posting_account", "ledger_posting", ["account"], unique=False)
    op.create_table(
        "jobs_batch_request",
        sa.Column("batch_id", sa.String(), nullable=False),
        sa.Column("project", sa.String(), nullable=False),
        sa.Column("principal", sa.String(), nullable=False),
        sa.Column("key", sa.String(), nullable=True),
        sa.Column("body_sha256", sa.String(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["batch_id"],
            ["jobs_batch.id"],
        ),
        sa.PrimaryKeyConstraint("batch_id"),
        sa.UniqueConstraint("project", "key"),
    )
    op.create_index(
        "jobs_batch_request_by_body", "jobs_batch_request", ["project", "principal", "body_sha256"], unique=False
    )
    op.create_table(
        "jobs_shard",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("batch_id", sa.String(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("first_idx", sa.Integer(), nullable=False),
        sa.Column("lines", sa.Integer(), nullable=False),
        sa.Column("start", sa.BigInteger(), nullable=False),
        sa.Column("stop", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("input_tokens", sa.BigInteger(), nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("nonce", sa.String(), nullable=True),
        sa.Column("placement_id", sa.String(), nullable=True),
        sa.Column("lease_expires_us", sa.BigInteger(), nullable=True),
        sa.Column("done", sa.JSON(), nullable=False),
        sa.Column("done_lines", sa.Integer(), nullable=False),
        sa.Column("in_flight", sa.JSON(), nullable=False),
        sa.Column("suspects", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["batch_id"],
            ["jobs_batch.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("batch_id", "number"),
    )
    op.create_index("ix_jobs_shard_placement_id", "jobs_shard", ["placement_id"], unique=False)
    op.create_index("jobs_shard_by_state", "jobs_shard", ["batch_id", "state"], unique=False)
    op.create_table(
        "jobs_lease",
        sa.Column("shard_id", sa.String(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("batch_id", sa.String(), nullable=False),
        sa.Column("placement_id", sa.String(), nullable=False),
        sa.Column("nonce", sa.String(), nullable=False),
        sa.Column("granted_us", sa.BigInteger(), nullable=False),
        sa.Column("ended_us", sa.BigInteger(), nullable=True),
        sa.Column("end_reason", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(
            ["batch_id"],
            ["jobs_batch.id"],
        ),
        sa.ForeignKeyConstraint(
            ["shard_id"],
            ["jobs_shard.id"],
        ),
        sa.PrimaryKeyConstraint("shard_id", "epoch"),
    )
    op.create_index("ix_jobs_lease_batch_id", "jobs_lease", ["batch_id"], unique=False)
    op.create_index("ix_jobs_lease_placement_id", "jobs_lease", ["placement_id"], unique=False)
    op.create_table(
        "jobs_part",
        sa.Column("shard_id", sa.String(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("batch_id", sa.String(), nullable=False),
        sa.Column("placement_id", sa.String(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("lines", sa.JSON(), nullable=False),
        sa.Column("usage", sa.LargeBinary(), nullable=False),
        sa.Column("counters", sa.JSON(), nullable=False),
        sa.Column("outcome", sa.String(), nullable=False),
        sa.Column("counted", sa.Boolean(), nullable=False),
        sa.Column("committed_us", sa.BigInteger(), nullable=False),
        sa.Column("withdrawn_us", sa.BigInteger(), nullable=True),
        sa.Column("completed", sa.Integer(), nullable=False),
        sa.Column("failed", sa.Integer(), nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger(), nullable=False),
        sa.Column("completion_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cached_tokens", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["batch_id"],
            ["jobs_batch.id"],
        ),
        sa.ForeignKeyConstraint(
            ["shard_id"],
            ["jobs_shard.id"],
        ),
        sa.PrimaryKeyConstraint("shard_id", "epoch", "seq"),
    )
    op.create_index("ix_jobs_part_batch_id", "jobs_part", ["batch_id"], unique=False)
    op.create_index("ix_jobs_part_placement_id", "jobs_part", ["placement_id"], unique=False)
    for statement in create_statements(op.get_bind().dialect.name):
        op.execute(statement)


def downgrade() -> None:
    for statement in drop_statements(op.get_bind().dialect.name):
        op.execute(statement)
    op.drop_index("ix_jobs_part_placement_id", table_name="jobs_part")
    op.drop_index("ix_jobs_part_batch_id", table_name="jobs_part")
    op.drop_table("jobs_part")
    op.drop_index("ix_jobs_lease_placement_id", table_name="jobs_lease")
    op.drop_index("ix_jobs_lease_batch_id", table_name="jobs_lease")
    op.drop_table("jobs_lease")
    op.drop_index("jobs_shard_by_state", table_name="jobs_shard")
    op.drop_index("ix_jobs_shard_placement_id", table_name="jobs_shard")
    op.drop_table("jobs_shard")
    op.drop_index("jobs_batch_request_by_body", table_name="jobs_batch_request")
    op.drop_table("jobs_batch_request")
    op.drop_index("ix_ledger_posting_account", table_name="ledger_posting")
    op.drop_table("ledger_posting")
    op.drop_index("jobs_batch_by_status", table_name="jobs_batch")
    op.drop_index("jobs_batch_by_project", table_name="jobs_batch")
    op.drop_index("ix_jobs_batch_input_file_id", table_name="jobs_batch")
    op.drop_table("jobs_batch")
    op.drop_index("ix_markets_rental_state", table_name="markets_rental")
    op.drop_index("ix_markets_rental_settled", table_name="markets_rental")
    op.drop_index("ix_markets_rental_project", table_name="markets_rental")
    op.drop_index("ix_markets_rental_offer_key", table_name="markets_rental")
    op.drop_index("ix_markets_rental_market", table_name="markets_rental")
    op.drop_index("ix_markets_rental_created_us", table_name="markets_rental")
    op.drop_table("markets_rental")
    op.drop_table("markets_poll")
    op.drop_index("ix_markets_offer_market", table_name="markets_offer")
    op.drop_table("markets_offer")
    op.drop_index("ix_ledger_hold_resolved", table_name="ledger_hold")
    op.drop_index("ix_ledger_hold_rental", table_name="ledger_hold")
    op.drop_index("ix_ledger_hold_project", table_name="ledger_hold")
    op.drop_table("ledger_hold")
    op.drop_table("ledger_head")
    op.drop_index(
        "ux_ledger_entry_hold_resolved",
        table_name="ledger_entry",
        sqlite_where=sa.text("kind IN ('hold.void', 'hold.expire')"),
        postgresql_where=sa.text("kind IN ('hold.void', 'hold.expire')"),
    )
    op.drop_index(
        "ux_ledger_entry_hold_opened",
        table_name="ledger_entry",
        sqlite_where=sa.text("kind = 'hold.open'"),
        postgresql_where=sa.text("kind = 'hold.open'"),
    )
    op.drop_index("ix_ledger_entry_rental_seq", table_name="ledger_entry")
    op.drop_index("ix_ledger_entry_project", table_name="ledger_entry")
    op.drop_index("ix_ledger_entry_kind", table_name="ledger_entry")
    op.drop_index("ix_ledger_entry_hold", table_name="ledger_entry")
    op.drop_index("ix_ledger_entry_batch", table_name="ledger_entry")
    op.drop_table("ledger_entry")
    op.drop_table("jobs_revoked_placement")
    op.drop_index("ix_jobs_outbox_delivered_us", table_name="jobs_outbox")
    op.drop_index("ix_jobs_outbox_batch_id", table_name="jobs_outbox")
    op.drop_table("jobs_outbox")
    op.drop_index("ix_jobs_file_project", table_name="jobs_file")
    op.drop_table("jobs_file")
    op.drop_table("broker_worker")
    op.drop_table("broker_waiting")
    op.drop_index("ix_broker_quote_project", table_name="broker_quote")
    op.drop_index("ix_broker_quote_batch", table_name="broker_quote")
    op.drop_table("broker_quote")
    op.drop_table("broker_project")
    op.drop_table("broker_policy")
    op.drop_index("ix_broker_plan_created_us", table_name="broker_plan")
    op.drop_table("broker_plan")
    op.drop_table("broker_measured")
    op.drop_index("ix_broker_key_project", table_name="broker_key")
    op.drop_table("broker_key")
    op.drop_index("ix_broker_assignment_plan", table_name="broker_assignment")
    op.drop_table("broker_assignment")
