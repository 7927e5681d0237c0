"""From served decisions and their feedback to a new version in force, or a refusal:

    python -m jobs.close_the_loop --decisions FOLDER --feedback FOLDER --in-force models:/NAME@serving --name RUN

Joins what was served with its feedback, trains the experiment of the version in force (or another) on it, compares both on the
newest requests, and moves the alias when the gate lets it. The last line is the verdict; exit code 0 = promoted, 3 = refused.
Running the same command again goes on where a killed one stopped; a finished one tells its verdict again.
"""

import sys

from jobs.command_line import read
from rayrec.errors import told
from rayrec.runs.closing_the_loop import CloseTheLoop, close_the_loop

REFUSED = 3


def main() -> None:
    with told():
        done = close_the_loop(read(CloseTheLoop, description=__doc__))
        if not done.verdict.promote:
            sys.exit(REFUSED)


if __name__ == "__main__":
    main()
