"""A fixed set of files, run in every client that we know of: ``make runtimes``."""
