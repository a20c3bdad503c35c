"""The proofs of workers behind a TLS proxy that were used, each until it is too old to be shown again.

Revision: 0015
"""

import sqlalchemy as sa

from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "broker_used_proof",
        sa.Column("proof", sa.String(), nullable=False),
        sa.Column("until_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("proof"),
    )
    op.create_index("ix_broker_used_proof_until_us", "broker_used_proof", ["until_us"], unique=False)


def downgrade() -> None:
    op.drop_index("ix_broker_used_proof_until_us", table_name="broker_used_proof")
    op.drop_table("broker_used_proof")
