"""The keys of stored objects: one for each file, upload and batch, kept under the vault's keys until it is destroyed.

Revision: 0012

What is stored already has no key and stays as it is, readable, until it is deleted.
"""

import sqlalchemy as sa

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "broker_object_key",
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("project", sa.String(), nullable=False),
        sa.Column("data_key", sa.String(), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=True),
        sa.Column("key_sha256", sa.String(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.Column("destroyed_us", sa.BigInteger(), nullable=True),
        sa.Column("decision", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("owner"),
    )
    op.create_index("ix_broker_object_key_project", "broker_object_key", ["project"], unique=False)
    op.create_index("ix_broker_object_key_destroyed_us", "broker_object_key", ["destroyed_us"], unique=False)


def downgrade() -> None:
    op.drop_index("ix_broker_object_key_destroyed_us", table_name="broker_object_key")
    op.drop_index("ix_broker_object_key_project", table_name="broker_object_key")
    op.drop_table("broker_object_key")
