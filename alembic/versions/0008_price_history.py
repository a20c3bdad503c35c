"""The price book's history, cards, and what polls wait for.

Revision: 0008
"""

import sqlalchemy as sa

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_REFUSAL = "markets: the history of prices is append-only"


def upgrade() -> None:
    with op.batch_alter_table("markets_offer") as batch_op:
        batch_op.add_column(sa.Column("gpu_count", sa.Integer(), nullable=False, server_default="0"))
        batch_op.add_column(sa.Column("gpu_nano_hour", sa.BigInteger(), nullable=True))
        batch_op.add_column(sa.Column("fingerprint", sa.String(), nullable=False, server_default=""))
        batch_op.create_index("ix_markets_offer_cheapest", ["accelerator", "gpu_nano_hour"], unique=False)
    with op.batch_alter_table("markets_poll") as batch_op:
        batch_op.add_column(sa.Column("failures", sa.Integer(), nullable=False, server_default="0"))
        batch_op.add_column(sa.Column("again_us", sa.BigInteger(), nullable=True))
        batch_op.add_column(sa.Column("card_by", sa.String(), nullable=True))
        batch_op.add_column(sa.Column("card_until_us", sa.BigInteger(), nullable=True))
    op.create_table(
        "markets_offer_change",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("at_us", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("price_nano_hour", sa.BigInteger(), nullable=True),
        sa.Column("input_nano", sa.BigInteger(), nullable=True),
        sa.Column("output_nano", sa.BigInteger(), nullable=True),
        sa.Column("capacity", sa.Integer(), nullable=True),
        sa.Column("reason", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    with op.batch_alter_table("markets_offer_change") as batch_op:
        batch_op.create_index("ix_markets_offer_change_key", ["key", "at_us"], unique=False)
        batch_op.create_index("ix_markets_offer_change_at", ["at_us"], unique=False)
    op.create_table(
        "markets_offer_day",
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("day_us", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("changes", sa.Integer(), nullable=False),
        sa.Column("min_nano", sa.BigInteger(), nullable=True),
        sa.Column("mean_nano", sa.BigInteger(), nullable=True),
        sa.Column("max_nano", sa.BigInteger(), nullable=True),
        sa.Column("last_nano", sa.BigInteger(), nullable=True),
        sa.Column("listed_ppm", sa.Integer(), nullable=False),
        sa.Column("available_ppm", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("key", "day_us"),
    )
    if op.get_bind().dialect.name == "sqlite":
        op.execute(
            "CREATE TRIGGER markets_offer_change_append_only BEFORE UPDATE ON markets_offer_change "
            f"BEGIN SELECT RAISE(ABORT, '{_REFUSAL}'); END"
        )
    else:
        op.execute(
            "CREATE FUNCTION markets_offer_change_append_only() RETURNS trigger LANGUAGE plpgsql AS $$ "
            f"BEGIN RAISE EXCEPTION '{_REFUSAL}'; END $$"
        )
        op.execute(
            "CREATE TRIGGER markets_offer_change_append_only BEFORE UPDATE ON markets_offer_change "
            "FOR EACH ROW EXECUTE FUNCTION markets_offer_change_append_only()"
        )


def downgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP TRIGGER markets_offer_change_append_only ON markets_offer_change")
        op.execute("DROP FUNCTION markets_offer_change_append_only()")
    op.drop_table("markets_offer_day")
    op.drop_table("markets_offer_change")
    with op.batch_alter_table("markets_poll") as batch_op:
        for name in ("card_until_us", "card_by", "again_us", "failures"):
            batch_op.drop_column(name)
    with op.batch_alter_table("markets_offer") as batch_op:
        batch_op.drop_index("ix_markets_offer_cheapest")
        for name in ("fingerprint", "gpu_nano_hour", "gpu_count"):
            batch_op.drop_column(name)
