"""Reasoning tokens, as engines tell them; anomalies that the broker has found, each once.

Revision: 0014

What was committed before had none that were counted: 0.
"""

import sqlalchemy as sa

from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs_batch", sa.Column("used_reasoning_tokens", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("jobs_part", sa.Column("reasoning_tokens", sa.BigInteger(), nullable=False, server_default="0"))
    op.create_table(
        "broker_anomaly",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("scope", sa.String(), nullable=False),
        sa.Column("rule", sa.String(), nullable=False),
        sa.Column("at_us", sa.BigInteger(), nullable=False),
        sa.Column("found_us", sa.BigInteger(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_broker_anomaly_found_us", "broker_anomaly", ["found_us"], unique=False)


def downgrade() -> None:
    op.drop_index("ix_broker_anomaly_found_us", table_name="broker_anomaly")
    op.drop_table("broker_anomaly")
    op.drop_column("jobs_part", "reasoning_tokens")
    op.drop_column("jobs_batch", "used_reasoning_tokens")
