"""Compliance: proposals and verdicts, facts, decisions, and what running work may still do after a change.

Revision: 0010
"""

import sqlalchemy as sa

from alembic import op
from broker.compliance.triggers import create_statements, drop_statements

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "broker_proposal",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("body", sa.JSON(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("proposer", sa.String(), nullable=False),
        sa.Column("proposed_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_broker_proposal_kind", "broker_proposal", ["kind"], unique=False)
    op.create_index("ix_broker_proposal_subject", "broker_proposal", ["subject"], unique=False)
    op.create_table(
        "broker_verdict",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("proposal", sa.String(), nullable=False),
        sa.Column("outcome", sa.String(), nullable=False),
        sa.Column("principal", sa.String(), nullable=False),
        sa.Column("decided_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("proposal", "principal", name="broker_verdict_once"),
    )
    op.create_index("ix_broker_verdict_proposal", "broker_verdict", ["proposal"], unique=False)
    op.create_table(
        "broker_facts",
        sa.Column("hash", sa.String(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("hash"),
    )
    op.create_table(
        "broker_decision",
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("at_us", sa.BigInteger(), nullable=False),
        sa.Column("point", sa.String(), nullable=False),
        sa.Column("batch", sa.String(), nullable=False),
        sa.Column("rental", sa.String(), nullable=True),
        sa.Column("offer_key", sa.String(), nullable=True),
        sa.Column("outcome", sa.String(), nullable=False),
        sa.Column("policy_hash", sa.String(), nullable=False),
        sa.Column("facts_hash", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("seq"),
    )
    op.create_index("ix_broker_decision_batch", "broker_decision", ["batch"], unique=False)
    op.create_table(
        "broker_grace",
        sa.Column("batch", sa.String(), nullable=False),
        sa.Column("policy_hash", sa.String(), nullable=False),
        sa.Column("until_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("batch"),
    )
    for statement in create_statements(op.get_bind().dialect.name):
        op.execute(statement)


def downgrade() -> None:
    for statement in drop_statements(op.get_bind().dialect.name):
        op.execute(statement)
    op.drop_table("broker_grace")
    op.drop_index("ix_broker_decision_batch", table_name="broker_decision")
    op.drop_table("broker_decision")
    op.drop_table("broker_facts")
    op.drop_index("ix_broker_verdict_proposal", table_name="broker_verdict")
    op.drop_table("broker_verdict")
    op.drop_index("ix_broker_proposal_subject", table_name="broker_proposal")
    op.drop_index("ix_broker_proposal_kind", table_name="broker_proposal")
    op.drop_table("broker_proposal")
