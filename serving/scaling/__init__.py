"""How many replicas there should be: by seconds of work that wait and tokens that arrive, not by counting requests.

Files in floor order: `policy`, `reported`.
"""
