"""Slurm's programs as scripts that write down what they are told."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

_PROGRAMS = {
    # Answers with the words in `refusal`, if there are any, else with the next number.
    "sbatch": """
if [ -s refusal ] && [ "$(ls scripts | wc -l)" -ge "$(cat accepts)" ]; then cat refusal >&2; exit 1; fi
number=$((17 + $(ls scripts | wc -l)))
cat "$1" > "scripts/$number.sh"
echo "Submitted batch job $number"
""",
    "srun": "exit 1",
    # The lines of `queue`; without that file it does not answer.
    "squeue": """echo "$@" >> asked; cat queue || exit 1""",
    "scancel": """echo "$@" >> cancelled""",
}


@dataclass
class FakeSlurm:
    """Slurm's programs in a folder of their own."""

    folder: Path

    @property
    def scripts(self) -> list[str]:
        """Return the scripts that were submitted."""
        return [path.read_text() for path in sorted((self.folder / "scripts").iterdir())]

    @property
    def cancelled(self) -> list[str]:
        file = self.folder / "cancelled"
        return file.read_text().split() if file.exists() else []

    def refuse(self, complaint: str, accepts: int = 0) -> None:
        """Refuse jobs, once some have been accepted."""
        (self.folder / "accepts").write_text(str(accepts))
        (self.folder / "refusal").write_text(complaint)

    def queue(self, *lines: str) -> None:
        """Let squeue say these lines."""
        (self.folder / "queue").write_text("".join(f"{line}\n" for line in lines))

    def silent(self) -> None:
        """Let squeue not answer."""
        (self.folder / "queue").unlink(missing_ok=True)


def install(folder: Path, patch: pytest.MonkeyPatch) -> FakeSlurm:
    """Put the programs on the PATH."""
    (folder / "scripts").mkdir(parents=True)
    for name, text in _PROGRAMS.items():
        program = folder / name
        program.write_text(f"#!/bin/sh\ncd {folder}\n{text}\n")
        program.chmod(0o755)
    patch.setenv("PATH", str(folder), prepend=os.pathsep)
    return FakeSlurm(folder)
