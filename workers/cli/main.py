"""The `postback` command: the groups, and how every fault of it ends in one sentence and an exit code.

0 done, 1 finished with findings or something does not answer, 2 wrong use or wrong configuration.
"""

from __future__ import annotations

import sys

import typer
from typer.exceptions import TyperException

from receiver.errors import ConfigurationError
from workers.cli import (
    alarms,
    attention,
    audit,
    console,
    expect,
    notifications,
    operate,
    operator,
    payments,
    processes,
    purge,
    rebuild,
    reconcile,
    reconciliations,
    refusals,
    replays,
    simulate,
    watch,
)

app = typer.Typer(
    name="postback",
    help="Receives payment notifications, proves who sent them, and makes one true record per payment.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    # What draws the help in boxes takes as long to load as all the rest, at every wrong word as well.
    rich_markup_mode=None,
    context_settings={"max_content_width": 120},
)
processes.register(app)
console.register(app)
operate.register(app)
purge.register(app)
app.add_typer(notifications.app, name="notifications")
rebuild.register(payments.app)
app.add_typer(payments.app, name="payments")
app.add_typer(refusals.app, name="refusals")
app.add_typer(expect.app, name="expect")
app.add_typer(attention.app, name="attention")
app.add_typer(alarms.app, name="alarms")
app.add_typer(replays.app, name="replays")
app.add_typer(audit.app, name="audit")
app.add_typer(operator.app, name="operator")
simulate.register(app)
watch.register(app)
reconcile.register(app)
app.add_typer(reconciliations.app, name="reconciliations")


def main() -> None:
    try:
        sys.exit(app(standalone_mode=False))
    except TyperException as error:
        sentence = " ".join(error.format_message().split())
        sys.exit(_say(sentence, 2) if sentence else 2)
    except typer.Abort:
        sys.exit(130)
    except ConfigurationError as error:
        sys.exit(_say(error, 2))
    except BrokenPipeError:
        # Somebody closed the pipe (`postback ... | head`): no fault, and nothing left to say.
        sys.stderr.close()
        sys.exit(0)
    except Exception as error:
        from redis.exceptions import RedisError

        from receiver.errors import BodyError, LedgerAway, NotDone, PostbackError

        if isinstance(error, NotDone):
            sys.exit(_say(error.detail, 2))
        if isinstance(error, LedgerAway):
            sys.exit(_say(f"The ledger does not answer: {error}", 1))
        if isinstance(error, RedisError):
            sys.exit(_say(f"Redis does not answer: {error}", 1))
        if isinstance(error, BodyError):
            sys.exit(_say(error, 1))
        if isinstance(error, PostbackError):
            sys.exit(_say(error.detail, 1))
        raise


def _say(sentence: object, code: int) -> int:
    print(f"postback: {sentence}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
