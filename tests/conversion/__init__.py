"""The conversion itself: which parameters, in which way, and what is refused."""
