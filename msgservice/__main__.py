"""`python -m msgservice`: the command line, where no script of it is on the path."""

from msgservice.cli import run

if __name__ == "__main__":
    run()
