"""Who goes on, who climbs, who wins.

Only `schedulers` and `group_scheduler` know Ray.

Files in floor order: `schedulers`, `pareto`, `ladder`, `budget`, `group_scheduler`, `contest`, `forecast`, `importance`.
"""
