from latentforge.trainer.cli.main import app

app()
