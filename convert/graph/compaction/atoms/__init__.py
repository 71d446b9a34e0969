"""What is known about every element of every tensor while a graph is followed: atoms, constants, readers, calls.

How one operation changes it is a rule, in ``rules``. What goes is decided in the folder above.
"""
