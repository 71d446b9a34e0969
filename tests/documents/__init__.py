"""The documents: their links, their commands and their code."""
