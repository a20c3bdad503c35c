"""Of several rates of one time the one that was given last counts.

Revision: 0016

What was known before keeps its order: by the source's name, and before any later word.
"""

import sqlalchemy as sa

from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("ledger_rate", sa.Column("word", sa.BigInteger(), nullable=False, server_default="0"))


def downgrade() -> None:
    op.drop_column("ledger_rate", "word")
