"""Random networks, described by a few printable lines, through the whole chain from conversion to the written file."""
