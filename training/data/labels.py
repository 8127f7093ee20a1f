"""How class indices say that a text has no label.

A file of its own: whoever judges or answers needs to know it, and need not import what reads tables.
"""

MISSING = -1
