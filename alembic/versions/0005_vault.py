"""The vault: data keys, credentials of projects, the workers' authority, and which data key a webhook's secret lies under.

Revision: 0005

Webhooks that are there have no data key yet: the broker brings their secrets into the vault when it starts.
"""

import sqlalchemy as sa

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "broker_data_key",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("kek", sa.String(), nullable=False),
        sa.Column("wrapped", sa.LargeBinary(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.Column("wrapped_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("owner"),
    )
    with op.batch_alter_table("broker_data_key") as batch_op:
        batch_op.create_index("ix_broker_data_key_kek", ["kek"], unique=False)

    op.create_table(
        "broker_credential",
        sa.Column("project", sa.String(), nullable=False),
        sa.Column("market", sa.String(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("names", sa.JSON(), nullable=False),
        sa.Column("data_key", sa.String(), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.Column("updated_us", sa.BigInteger(), nullable=False),
        sa.Column("updated_by", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("project", "market"),
    )
    op.create_table(
        "broker_authority",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("certificate", sa.String(), nullable=False),
        sa.Column("data_key", sa.String(), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "broker_certificate",
        sa.Column("serial", sa.String(), nullable=False),
        sa.Column("rental", sa.String(), nullable=False),
        sa.Column("public_key_sha256", sa.String(), nullable=False),
        sa.Column("pem", sa.String(), nullable=False),
        sa.Column("issued_us", sa.BigInteger(), nullable=False),
        sa.Column("expires_us", sa.BigInteger(), nullable=False),
        sa.Column("revoked_us", sa.BigInteger(), nullable=True),
        sa.Column("revoked_reason", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("serial"),
    )
    with op.batch_alter_table("broker_certificate") as batch_op:
        batch_op.create_index("ix_broker_certificate_rental", ["rental"], unique=False)

    with op.batch_alter_table("broker_webhook") as batch_op:
        batch_op.add_column(sa.Column("data_key", sa.String(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("broker_webhook") as batch_op:
        batch_op.drop_column("data_key")

    with op.batch_alter_table("broker_certificate") as batch_op:
        batch_op.drop_index("ix_broker_certificate_rental")

    op.drop_table("broker_certificate")
    op.drop_table("broker_authority")
    op.drop_table("broker_credential")
    with op.batch_alter_table("broker_data_key") as batch_op:
        batch_op.drop_index("ix_broker_data_key_kek")

    op.drop_table("broker_data_key")
