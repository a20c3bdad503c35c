"""`python -m broker` is the same as the installed `broker`."""

from broker.cli.main import run

if __name__ == "__main__":
    run()
