"""How many requests at once a batch with a p95 to keep may have, and how long they took.

Revision: 0020
"""

import sqlalchemy as sa

from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("broker_assignment") as batch_op:
        batch_op.add_column(sa.Column("concurrency", sa.Integer(), nullable=True))
        batch_op.add_column(sa.Column("p95_ms", sa.Integer(), nullable=True))
        batch_op.add_column(sa.Column("slowed_ppm", sa.BigInteger(), nullable=True))
    op.create_table(
        "broker_request_times",
        sa.Column("batch", sa.String(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("precision", sa.String(), nullable=False),
        sa.Column("accelerator", sa.String(), nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("modelled_ms", sa.BigInteger(), nullable=False),
        sa.Column("took", sa.JSON(), nullable=False),
        sa.Column("observed_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("batch", "model", "precision", "accelerator"),
    )
    with op.batch_alter_table("broker_request_times") as batch_op:
        batch_op.create_index("ix_broker_request_times_observed_us", ["observed_us"], unique=False)


def downgrade() -> None:
    with op.batch_alter_table("broker_request_times") as batch_op:
        batch_op.drop_index("ix_broker_request_times_observed_us")
    op.drop_table("broker_request_times")
    with op.batch_alter_table("broker_assignment") as batch_op:
        batch_op.drop_column("slowed_ppm")
        batch_op.drop_column("p95_ms")
        batch_op.drop_column("concurrency")
