"""Which broker of a database validates, finishes or cleans up what, until when.

Revision: 0013
"""

import sqlalchemy as sa

from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "broker_claim",
        sa.Column("work", sa.String(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("token", sa.String(), nullable=False),
        sa.Column("holder", sa.String(), nullable=False),
        sa.Column("until_us", sa.BigInteger(), nullable=False),
        sa.Column("takes", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("work", "subject"),
    )
    op.create_index("ix_broker_claim_token", "broker_claim", ["token"], unique=True)


def downgrade() -> None:
    op.drop_index("ix_broker_claim_token", table_name="broker_claim")
    op.drop_table("broker_claim")
