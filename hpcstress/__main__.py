"""`python -m hpcstress`, also under mpirun and srun."""

import sys


def main() -> None:
    """Run the command line. Somebody who gives up while it is still being loaded sees no traceback."""
    try:
        from hpcstress.cli import main as command_line

        command_line()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
