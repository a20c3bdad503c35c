"""Of which of the provider's accounts a project's credentials are.

Revision: 0017

Of those that were kept before it is learnt by asking the provider, when the broker has started.
"""

import sqlalchemy as sa

from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("broker_credential", sa.Column("account", sa.String(), nullable=True))


def downgrade() -> None:
    op.drop_column("broker_credential", "account")
