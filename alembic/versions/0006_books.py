"""The sealed streams, lots, rates and the use of budget scopes; the ledger's head may move by several entries at once.

Revision: 0006

Entries that are there are sealed now, in their order; what was accrued and held counts against its project's scope.
"""

import sqlalchemy as sa

from alembic import op
from ledger import seal_triggers, triggers
from ledger.book import leaf_of
from ledger.merkle import Frontier, leaf_hash
from ledger.seal import FIRST, chained

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

PAGE = 1000
# What revisions before this one installed: the head moved by one.
EARLIER_HEAD = {
    "sqlite": (
        "DROP TRIGGER ledger_head_update",
        "CREATE TRIGGER ledger_head_update BEFORE UPDATE ON ledger_head WHEN NEW.id <> 1 OR NEW.seq <> OLD.seq + 1 "
        "BEGIN SELECT RAISE(ABORT, 'ledger: the head moves by one and is never removed'); END",
    ),
    "postgresql": (
        "CREATE OR REPLACE FUNCTION ledger_head_move() RETURNS trigger LANGUAGE plpgsql AS $body$ BEGIN "
        "IF TG_OP <> 'UPDATE' OR NEW.id <> 1 OR NEW.seq <> OLD.seq + 1 THEN RAISE EXCEPTION USING "
        "MESSAGE = 'ledger: the head moves by one and is never removed', ERRCODE = 'integrity_constraint_violation'; "
        "END IF; RETURN NEW; END $body$",
    ),
}


def upgrade() -> None:
    dialect = op.get_bind().dialect.name
    with op.batch_alter_table("ledger_hold") as batch_op:
        batch_op.add_column(sa.Column("unit", sa.String(), nullable=False, server_default="USD"))
    op.create_table(
        "ledger_seal",
        sa.Column("stream", sa.String(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False, autoincrement=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.Column("prev", sa.String(), nullable=False),
        sa.Column("hash", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("stream", "seq"),
    )
    op.create_table(
        "ledger_seal_head",
        sa.Column("stream", sa.String(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("hash", sa.String(), nullable=False),
        sa.Column("peaks", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("stream"),
    )
    op.create_table(
        "ledger_checkpoint",
        sa.Column("stream", sa.String(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False, autoincrement=False),
        sa.Column("root", sa.String(), nullable=False),
        sa.Column("note", sa.String(), nullable=False),
        sa.Column("at_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("stream", "size"),
    )
    op.create_table(
        "ledger_lot",
        sa.Column("unit", sa.String(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False, autoincrement=False),
        sa.Column("cost_unit", sa.String(), nullable=False),
        *(
            sa.Column(name, sa.BigInteger(), nullable=False)
            for name in ("nano", "cost_nano", "left_nano", "left_cost_nano", "bought_us")
        ),
        sa.PrimaryKeyConstraint("unit", "seq"),
    )
    op.create_table(
        "ledger_rate",
        sa.Column("unit", sa.String(), nullable=False),
        sa.Column("quote", sa.String(), nullable=False),
        sa.Column("at_us", sa.BigInteger(), nullable=False, autoincrement=False),
        sa.Column("source", sa.String(), nullable=False),
        sa.Column("rate", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("unit", "quote", "at_us", "source"),
    )
    op.create_table(
        "ledger_scope_use",
        sa.Column("scope", sa.String(), nullable=False),
        sa.Column("unit", sa.String(), nullable=False),
        sa.Column("window", sa.String(), nullable=False),
        sa.Column("nano", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("scope", "unit", "window"),
    )
    for statement in [*triggers.head_statements(dialect), *seal_triggers.create_statements(dialect)]:
        op.execute(statement)
    _seal_what_is_there()
    _count_what_is_there()


def _seal_what_is_there() -> None:
    connection = op.get_bind()
    frontier, prev, seq = Frontier(), FIRST, 0
    page = sa.text(
        "SELECT id, seq, payload, recorded_at_us FROM ledger_entry WHERE seq > :after ORDER BY seq LIMIT :page"
    )
    insert = sa.text(
        "INSERT INTO ledger_seal (stream, seq, payload, prev, hash) VALUES ('books', :seq, :payload, :prev, :hash)"
    )
    while found := connection.execute(page, {"after": seq, "page": PAGE}).mappings().all():
        rows = []
        for entry in found:
            payload = leaf_of({**entry, "payload": bytes(entry["payload"])})
            hashed = leaf_hash(payload)
            frontier.add(hashed)
            seq, now = entry["seq"], chained(prev, hashed)
            rows.append({"seq": seq, "payload": payload, "prev": prev, "hash": now})
            prev = now
        connection.execute(insert, rows)
    if seq:
        head = sa.text("UPDATE ledger_seal_head SET seq = :seq, hash = :hash, peaks = :peaks WHERE stream = 'books'")
        connection.execute(head, {"seq": seq, "hash": prev, "peaks": frontier.encode()})


def _count_what_is_there() -> None:
    accounts = {"held": ("Memo:Held:%",), "all": ("Memo:Drawn:%", "Memo:Spent:%")}
    for window, period in (("'held'", "held"), ("'all'", "all"), ("e.period", "all")):
        like = " OR ".join(f"p.account LIKE '{each}'" for each in accounts[period])
        statement = (
            "INSERT INTO ledger_scope_use (scope, unit, window, nano) "
            f"SELECT 'project:' || e.project, p.unit, {window}, SUM(p.nano) FROM ledger_posting p "
            f"JOIN ledger_entry e ON e.id = p.entry_id WHERE e.project IS NOT NULL AND ({like}) GROUP BY 1, 2, 3"
        ).replace("window,", '"window",', 1)
        op.get_bind().exec_driver_sql(
            statement.replace("%", "%%") if op.get_bind().dialect.name == "postgresql" else statement
        )


def downgrade() -> None:
    dialect = op.get_bind().dialect.name
    for statement in seal_triggers.drop_statements(dialect):
        op.execute(statement)
    for table in ("scope_use", "rate", "lot", "checkpoint", "seal_head", "seal"):
        op.drop_table(f"ledger_{table}")
    for statement in EARLIER_HEAD[dialect]:
        op.execute(statement)
    with op.batch_alter_table("ledger_hold") as batch_op:
        batch_op.drop_column("unit")
