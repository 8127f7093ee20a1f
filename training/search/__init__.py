"""Many trainings: proposed, stopped early, written down, confirmed, judged.

Only `trial`, `together`, `agenda`, `schedulers`, `progress` and `tuning` know Ray.

Files in floor order: `search_space`, `samplers`, `schedulers`, `pareto`, `searcher`, `ledger`, `assignment`, `saved`, `reading`,
`build`, `together`, `trial`, `agenda`, `contest`, `importance`, `plan`, `prepared`, `progress`, `record`, `winner`, `tuning`,
`terminal`, `review`.
"""
