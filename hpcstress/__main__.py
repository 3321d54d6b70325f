"""`python -m hpcstress`, also under mpirun and srun."""

from hpcstress.cli import main

main()
