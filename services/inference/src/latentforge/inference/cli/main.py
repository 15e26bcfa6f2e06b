"""The command line: every command is a file beside this one."""

import typer

from latentforge.inference.cli import pins
from latentforge.inference.cli.bench import bench
from latentforge.inference.cli.chat import chat
from latentforge.inference.cli.infer import infer
from latentforge.inference.cli.serve import serve

app = typer.Typer(
    help="Serves the newest checkpoint, asks it, measures it.", no_args_is_help=True, add_completion=False
)

for command in (serve, infer, chat, bench, pins.pin, pins.unpin):
    app.command()(command)
app.command("list")(pins.list_published)
