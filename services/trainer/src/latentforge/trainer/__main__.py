from latentforge.trainer.cli import app

app()
