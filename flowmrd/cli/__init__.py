"""The command line: arguments, log handlers, exit codes. Each command's module is imported only when it runs."""

from __future__ import annotations

import importlib
import sys

import click

from flowmrd import __version__

# Command name -> module of this package holding a click command named `command`.
COMMANDS = {
    "endpoints": "endpoints",
    "evaluate": "evaluate",
    "gate": "gate",
    "gates": "gates",
    "inspect": "inspect_",
    "kinetics": "kinetics",
    "respond": "respond",
    "reference": "reference",
    "run": "run",
    "simulate": "simulate",
    "template": "template",
}
SUMMARIES = {
    "endpoints": "Compute a cohort's endpoints: response, survival, persistence, safety.",
    "evaluate": "Score the pipeline on labelled files.",
    "gate": "Gate FCS files by a template or a foreign document.",
    "gates": "Convert gates from and to other programs; compare counts.",
    "inspect": "Say what an FCS file holds and whether it can be trusted.",
    "respond": "Class the response at each visit of a clinical table.",
    "kinetics": "Cellular kinetics from a table of counts.",
    "reference": "Build and show references of normal cells.",
    "run": "Run a manifest: gate, measure, report.",
    "simulate": "Make labelled synthetic acquisitions.",
    "template": "List, show and check gating templates.",
}

EXIT_INTERNAL, EXIT_USAGE, EXIT_SOME_FAILED, EXIT_QC, EXIT_NOTHING, EXIT_INTERRUPTED = 1, 2, 3, 4, 5, 130


class LazyGroup(click.Group):
    """A group that imports a command's module only when that command is asked for (start-up under 0.3 s)."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  (click's signature)
        """Return all command names."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import the module of one command."""
        if cmd_name not in COMMANDS:
            from difflib import get_close_matches

            close = get_close_matches(cmd_name, list(COMMANDS), n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"commands: {', '.join(sorted(COMMANDS))}"
            raise click.UsageError(f"no command {cmd_name!r} ({hint})")
        module = importlib.import_module(f"flowmrd.cli.{COMMANDS[cmd_name]}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands from the table above, importing none of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, SUMMARIES[name]) for name in self.list_commands(ctx)])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="flowmrd")
def cli() -> None:
    """Flow-cytometry MRD and CAR-T: from raw FCS files to a result with its limits.

    Research use; every result is a proposal until a person has signed it.
    """


def main() -> None:
    """Run the command line; every expected error becomes one readable line and an exit code."""
    from flowmrd.errors import FlowmrdError, InputError

    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(EXIT_INTERRUPTED)
    except InputError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(EXIT_USAGE)
    except ExceptionGroup as group:
        for fault in group.exceptions:
            click.echo(f"error: {fault}", err=True)
        sys.exit(EXIT_USAGE)
    except FlowmrdError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(EXIT_INTERNAL)
