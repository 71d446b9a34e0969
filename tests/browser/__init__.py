"""A person at the page of examples/browser: ``make browser-test``."""
