"""The commands: `python -m analysis report RESULT...` and `python -m analysis export RESULT`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, CycloptsError, Parameter, Token

from hpcstress.errors import FAILED, OK, USAGE, Refusal, while_read
from hpcstress.quantity import mask_addresses, read_folder

app = App(name="python -m analysis", help="Read result files of hpcstress.", version_flags=[])


def _folder(_type: object, words: Sequence[Token]) -> Path:
    return read_folder(words[0].value)


Output = Annotated[Path | None, Parameter(converter=_folder)]


@app.command
def report(*results: Path, output: Output = None) -> None:
    """Write one HTML page that says what the results say, with pictures and tables beside it.

    Parameters
    ----------
    results
        One or several result files.
    output
        The folder to write into; by default `report` beside the first result.
    """
    from analysis.report import summary, write_report

    page = write_report(results, output)
    for result in results:
        print(summary(result))
    print(f"The report is {page}")


@app.command
def export(result: Path, *, format: Literal["csv", "parquet"] = "csv", output: Output = None) -> None:
    """Write all attempts and tables as files that other programs read.

    Parameters
    ----------
    result
        A result file.
    format
        csv or parquet.
    output
        The folder to write into; by default `export` beside the result.
    """
    from analysis.export import export as write

    for path in write(result, format, output):
        print(path)


def main(words: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    return while_read(lambda: _exit_code(words))


def _exit_code(words: Sequence[str] | None) -> int:
    try:
        app(words, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        print(mask_addresses(f"{error}".strip()) or "That command is not known.", file=sys.stderr)
        return USAGE
    except Refusal as refusal:
        print(mask_addresses(str(refusal)), file=sys.stderr)
        return refusal.exit_code
    except ModuleNotFoundError as error:
        print(f"This needs {error.name}: install it with `pip install 'hpcstress[analysis]'`.", file=sys.stderr)
        return FAILED
    except BrokenPipeError:
        raise
    except OSError as error:
        print(f"{error.filename} cannot be written: {error.strerror}.", file=sys.stderr)
        return FAILED
    return OK


if __name__ == "__main__":
    sys.exit(main())
