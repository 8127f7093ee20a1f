"""What happens to requests while a deployment is changed, or loses one of its processes.

    python -m benchmarks.drills --times 20

Files in floor order: `asking` (requests at a steady rate), `crowd` (many of them), `house` (a real deployment, and its processes), `drills`
(what is done to it), `soak` (an hour of everything), `slow_callers` (who never finish), `__main__` (repeats drills and prints a table).
"""
