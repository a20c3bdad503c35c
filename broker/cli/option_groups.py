"""Options that several commands share, written once: a dataclass is a group of options, a parameter of its type is all
of them.

    @dataclass(frozen=True, kw_only=True)
    class Target:
        url: Annotated[str | None, typer.Option(help="A broker elsewhere.")] = None

    def cancel(batch_id: BatchId, target: Target) -> None: ...

    declare(app, {"cancel": cancel})    # `cancel BATCH --url …`; the function is called with a Target
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

import typer
from typer.core import TyperCommand

from broker.cli.exits import ReaderLeft

Command = Callable[..., None]
NEGATIVE = re.compile(r"-(\d+\.?\d*|\.\d+)")


class NumbersAreArguments(TyperCommand):
    """`-1` is a number and no option: whoever is asked says what is wrong with it, where "No such option: -1" said nothing."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if any(NEGATIVE.fullmatch(each) for each in args):
            # Read once without them, which raises for an option that does not exist: it was taken for an argument.
            self.make_parser(ctx).parse_args(["0" if NEGATIVE.fullmatch(each) else each for each in args])
            ctx.ignore_unknown_options = True
        return super().parse_args(ctx, args)


def declare(app: typer.Typer, commands: Mapping[str, Command]) -> typer.Typer:
    """`app` with these commands, by name."""
    for name, command in commands.items():
        app.command(name, cls=NumbersAreArguments)(spread(command))
    return app


def spread(command: Command) -> Command:
    """`command` as typer reads it: each parameter that is a group of options stands for the options of the group.

    Raises TypeError when two of them have the same name: one would silently take the other's value.
    """
    hints = get_type_hints(command, include_extras=True)
    groups = {name: hint for name, hint in hints.items() if isinstance(hint, type) and is_dataclass(hint)}
    own: list[inspect.Parameter] = []
    shared: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if name in groups:
            shared += _options(groups[name])
        else:
            own.append(parameter.replace(annotation=hints[name], kind=KEYWORD))
    parameters = own + shared  # as `--help` lists them
    names = [parameter.name for parameter in parameters]
    if len(names) != len(set(names)):
        raise TypeError(f"{command.__name__}: two options have the same name: {sorted(names)}")

    def called(**given: Any) -> None:
        for name, group in groups.items():
            given[name] = group(**{field.name: given.pop(field.name) for field in fields(group)})
        try:
            command(**given)
        except BrokenPipeError as gone:
            raise ReaderLeft from gone

    called.__name__, called.__doc__, called.__module__ = command.__name__, command.__doc__, command.__module__
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return called


KEYWORD = inspect.Parameter.KEYWORD_ONLY


def _options(group: type) -> list[inspect.Parameter]:
    """One keyword parameter a field. A group's fields all have defaults: what must be given is no shared option."""
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(field.name, KEYWORD, default=field.default, annotation=hints[field.name])
        for field in fields(group)
    ]
