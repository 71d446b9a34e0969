"""The checks of all workers of this folder in one run, which starts its processes once."""

from . import data_parallel, equality, sharded
from .processes import checks_of, run

__all__ = ["WORKERS"]

WORKERS = (data_parallel, sharded, equality)

if __name__ == "__main__":
    run([check for worker in WORKERS for check in checks_of(worker.__name__)])
