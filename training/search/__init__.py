"""Many trainings: proposed, stopped early, written down, confirmed, judged.

Only `first_rung`, `trial`, `together`, `agenda`, `schedulers`, `progress` and `tuning` know Ray.

Files in floor order: `search_space`, `samplers`, `schedulers`, `pareto`, `searcher`, `ledger`, `assignment`, `saved`, `reading`,
`heads_alone`, `build`, `first_rung`, `together`, `trial`, `agenda`, `contest`, `importance`, `plan`, `prepared`, `progress`,
`record`, `winner`, `tuning`, `terminal`, `review`.
"""
