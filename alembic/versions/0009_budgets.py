"""The budget tree: teams, limits with their breakers, alerts, raises; the nodes that a hold counts against.

Revision: 0009
"""

import sqlalchemy as sa

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("ledger_hold") as batch_op:
        batch_op.add_column(sa.Column("scopes", sa.String(), nullable=False, server_default=""))
    op.create_table(
        "broker_team",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("org", sa.String(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "broker_team_project",
        sa.Column("project", sa.String(), nullable=False),
        sa.Column("team", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("project"),
    )
    op.create_index("ix_broker_team_project_team", "broker_team_project", ["team"], unique=False)
    op.create_table(
        "broker_budget",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("scope", sa.String(), nullable=False),
        sa.Column("unit", sa.String(), nullable=False),
        sa.Column("project", sa.String(), nullable=True),
        sa.Column("window", sa.String(), nullable=False),
        sa.Column("limit_nano", sa.BigInteger(), nullable=False),
        sa.Column("per_hour_nano", sa.BigInteger(), nullable=True),
        sa.Column("mode", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("state_us", sa.BigInteger(), nullable=False),
        sa.Column("relieved_us", sa.BigInteger(), nullable=True),
        sa.Column("emails", sa.JSON(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.Column("updated_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("scope", "unit", name="ux_broker_budget_scope"),
    )
    op.create_index("ix_broker_budget_project", "broker_budget", ["project"], unique=False)
    op.create_index("ix_broker_budget_scope", "broker_budget", ["scope"], unique=False)
    op.create_table(
        "broker_budget_alert",
        sa.Column("budget", sa.String(), nullable=False),
        sa.Column("period", sa.String(), nullable=False),
        sa.Column("threshold", sa.Integer(), nullable=False),
        sa.Column("committed_nano", sa.BigInteger(), nullable=False),
        sa.Column("limit_nano", sa.BigInteger(), nullable=False),
        sa.Column("at_us", sa.BigInteger(), nullable=False),
        sa.Column("mailed_us", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("budget", "period", "threshold"),
    )
    op.create_index("ix_broker_budget_alert_mailed_us", "broker_budget_alert", ["mailed_us"], unique=False)
    op.create_table(
        "broker_budget_change",
        sa.Column("approval", sa.String(), nullable=False),
        sa.Column("budget", sa.String(), nullable=False),
        sa.Column("wanted", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("approval"),
    )
    op.create_index("ix_broker_budget_change_budget", "broker_budget_change", ["budget"], unique=False)


def downgrade() -> None:
    op.drop_table("broker_budget_change")
    op.drop_table("broker_budget_alert")
    op.drop_table("broker_budget")
    op.drop_table("broker_team_project")
    op.drop_table("broker_team")
    with op.batch_alter_table("ledger_hold") as batch_op:
        batch_op.drop_column("scopes")
