"""How long machines took to be of use.

Revision: 0004
"""

import sqlalchemy as sa

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "broker_start_up",
        sa.Column("rental", sa.String(), nullable=False),
        sa.Column("market", sa.String(), nullable=False),
        sa.Column("place", sa.String(), nullable=False),
        sa.Column("image", sa.String(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("accelerator", sa.String(), nullable=False),
        sa.Column("observed_us", sa.BigInteger(), nullable=False),
        sa.Column("boot_ms", sa.BigInteger(), nullable=False),
        sa.Column("ready_ms", sa.BigInteger(), nullable=False),
        sa.Column("pull_ms", sa.BigInteger(), nullable=True),
        sa.Column("download_ms", sa.BigInteger(), nullable=True),
        sa.Column("load_ms", sa.BigInteger(), nullable=True),
        sa.Column("warm_up_ms", sa.BigInteger(), nullable=True),
        sa.Column("first_line_ms", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("rental"),
    )
    with op.batch_alter_table("broker_start_up") as batch_op:
        batch_op.create_index("ix_broker_start_up_observed_us", ["observed_us"], unique=False)


def downgrade() -> None:
    op.drop_table("broker_start_up")
