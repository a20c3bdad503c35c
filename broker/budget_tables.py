"""Tables of the budget tree: who belongs to whom, limits and breakers, what was told, raises that wait for a second person."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, Column, UniqueConstraint
from sqlmodel import Field, SQLModel

from broker.tables import micros


class Team(SQLModel, table=True):
    """A team of an organisation. Projects name their team."""

    __tablename__ = "broker_team"
    name: str = Field(primary_key=True)
    org: str
    created_us: int = micros()


class TeamOfProject(SQLModel, table=True):
    """Which team a project belongs to; one that is not here belongs to nobody."""

    __tablename__ = "broker_team_project"
    project: str = Field(primary_key=True)
    team: str = Field(index=True)


class BudgetRow(SQLModel, table=True):
    """A limit on one node: `scope` is `org:NAME`, `team:NAME`, `project:NAME`, `batch:ID` or `tag:PROJECT/KEY=VALUE`.

    `window` is `month` or `total`; batches and tags have `total`. `mode` `alert_only` refuses and stops nothing. `project` is
    whose it is, None for teams and organisations. `relieved_us`: when it was last raised.
    """

    __tablename__ = "broker_budget"
    __table_args__ = (UniqueConstraint("scope", "unit", name="ux_broker_budget_scope"),)
    id: str = Field(primary_key=True)
    scope: str = Field(index=True)
    unit: str
    project: str | None = Field(default=None, index=True)
    window: str
    limit_nano: int = micros()
    per_hour_nano: int | None = micros(nullable=True)
    mode: str = "enforce"
    state: str = "closed"
    state_us: int = micros()
    relieved_us: int | None = micros(nullable=True)
    emails: list[str] = Field(sa_column=Column(JSON, nullable=False))
    created_us: int = micros()
    updated_us: int = micros()


class BudgetAlert(SQLModel, table=True):
    """A threshold (percent) was reached in a window: told once. `mailed_us` None: its mail is still to be sent."""

    __tablename__ = "broker_budget_alert"
    budget: str = Field(primary_key=True)
    period: str = Field(primary_key=True)
    threshold: int = Field(primary_key=True)
    committed_nano: int = micros()
    limit_nano: int = micros()
    at_us: int = micros()
    mailed_us: int | None = Field(default=None, sa_column=Column(BigInteger, nullable=True, index=True))


class BudgetChange(SQLModel, table=True):
    """What a raise would make of a budget, by its approval: written when another principal approves it."""

    __tablename__ = "broker_budget_change"
    approval: str = Field(primary_key=True)
    budget: str = Field(index=True)
    wanted: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
