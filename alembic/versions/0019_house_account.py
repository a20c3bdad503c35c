"""Which of a provider's accounts the house's machines run in.

Revision: 0019
"""

import sqlalchemy as sa

from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "broker_house_account",
        sa.Column("market", sa.String(), nullable=False),
        sa.Column("account", sa.String(), nullable=False),
        sa.Column("since_us", sa.BigInteger(), nullable=False),
        sa.Column("other", sa.String(), nullable=True),
        sa.Column("other_us", sa.BigInteger(), nullable=True),
        sa.Column("before", sa.String(), nullable=True),
        sa.Column("given_up_by", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("market"),
    )


def downgrade() -> None:
    op.drop_table("broker_house_account")
