"""The commands `report`, `compare` and `export` of `python -m analysis`, each of some results."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter, Token

from hpcstress.errors import FAILED, OK, USAGE, Refusal, UsageRefusal, while_read
from hpcstress.quantity import mask_addresses, read_folder, read_fraction

app = App(name="python -m analysis", help="Read result files of hpcstress.", version_flags=[])


def _folder(_type: object, words: Sequence[Token]) -> Path:
    return read_folder(words[0].value)


Output = Annotated[Path | None, Parameter(converter=_folder)]


def read_margin(text: str) -> float:
    """Read what is called the same: a share above 0, such as 5%."""
    share = read_fraction(text)
    if not share:
        raise UsageRefusal("--margin: Nothing is exactly the same: give a share above 0, such as 5%.")
    return share


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
def compare(*results: Path, output: Output = None, margin: str = "5%") -> None:
    """Say which server is faster, in what, by how much; write one HTML page with pictures and a table beside it.

    Several results of one server are its rounds; all that is said comes from how much rounds differ.

    Parameters
    ----------
    results
        Result files, job folders, or the folder of a `hpcstress compare`.
    output
        The folder to write into; by default `comparison` in the folder of a comparison, else beside the first result.
    margin
        What differs by less is called the same.
    """
    from analysis.compare import write_comparison

    page, told = write_comparison(results, output, read_margin(margin))
    print(told)
    print(f"The comparison is {page}")


@app.command
def export(*results: Path, format: str = "csv", output: Output = None) -> None:
    """Write results as files that other programs read.

    `csv` and `parquet` hold all rows and tables of a result.

    `mantik` writes results-parameters.csv, results-artifacts.csv and results-parallel-runs.csv of results of these
    workloads. What the original gets wrong is right here: `succeeded` is False where something failed, a failed
    duration is divided by what had been logged until then, and the duration per parameter of parallel runs is divided
    by all their parameters, not by the number of runs.

    `mlflow-scale` writes `summary_*.json` as k6 does, `metrics_*.csv` and `report_*.csv`, of results of the workload
    tenants. What the original gets wrong is right here: latencies include those of failures, and a p95 over several
    operations comes from all their requests, and is no mean of their p95s.

    Parameters
    ----------
    results
        One or several result files.
    format
        csv, parquet, mantik or mlflow-scale.
    output
        The folder to write into; by default `export` beside the first result.
    """
    from analysis.export import export as write

    for path in write(results, format, output):
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
