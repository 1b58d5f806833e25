"""What subcommands are written with: the register, flags with their help, and those that many share."""

import functools
from collections.abc import Callable
from typing import Annotated, Any, Literal

from tyro.conf import UseAppendAction, arg
from tyro.extras import SubcommandApp

COMMANDS = SubcommandApp()


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Registers a subcommand so that parsing only binds arguments: what it raises is then ours to tell."""

    @functools.wraps(function)
    def bind(*args: Any, **fields: Any) -> functools.partial[None]:
        return functools.partial(function, *args, **fields)

    COMMANDS.command(bind)
    return function


def flag(metavar: str, default: str, text: str, *aliases: str, name: str | None = None) -> Any:
    """Numbers stay texts here: `GenerateRequest` reads and refuses them, in the same words as in Python."""
    hint = f"(default: {default})" if default else ""
    return arg(metavar=metavar, help=text, help_behavior_hint=hint, aliases=aliases, name=name)


OWN = "the model's own"
Model = Annotated[
    str | None, flag("MODEL", "the bundled one", "A folder, or a name on the Hugging Face hub.")
]
Runtime = Annotated[
    Literal["torch", "openvino"],
    flag("torch|openvino", "torch", "What runs the model; the other is quicker on many CPUs."),
]
Json = Annotated[bool, arg(name="json", help="Print JSON.", help_behavior_hint="")]
#: A flag of one value that may be given again: words after it are not taken for more of them.
Repeated = UseAppendAction[tuple[str, ...]]
