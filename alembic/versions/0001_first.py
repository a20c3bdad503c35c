"""The first schema of all rooms, with the ledger's append-only triggers.

Revision: 0001
"""

from sqlmodel import SQLModel

from alembic import op
from ledger.triggers import create_statements, drop_statements

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    bind = op.get_bind()
    SQLModel.metadata.create_all(bind)
    for statement in create_statements(bind.dialect.name):
        op.execute(statement)


def downgrade() -> None:
    bind = op.get_bind()
    for statement in drop_statements(bind.dialect.name):
        op.execute(statement)
    SQLModel.metadata.drop_all(bind)
