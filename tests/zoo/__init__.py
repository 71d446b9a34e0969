"""A zoo of public models: every one is converted, checked, and converted back.

``python -m tests.zoo`` runs all of it in processes of their own and prints a table by library.
"""
