"""The suite on the oldest and the newest torch, and on the oldest and the newest Python: ``make torch-matrix``.

``rows.py`` says what is tried, ``results.json`` what came of it. A test compares both with what pyproject.toml admits.
"""
