"""Decisions of more kinds than evaluations, and where rentals were last seen to be.

Revision: 0011
"""

import sqlalchemy as sa

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("broker_decision", sa.Column("kind", sa.String(), server_default="evaluation", nullable=False))
    op.create_table(
        "broker_whereabouts",
        sa.Column("batch", sa.String(), nullable=False),
        sa.Column("rental", sa.String(), nullable=False),
        sa.Column("place", sa.String(), nullable=False),
        sa.Column("since_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("batch", "rental"),
    )


def downgrade() -> None:
    op.drop_table("broker_whereabouts")
    op.drop_column("broker_decision", "kind")
