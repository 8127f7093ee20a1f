"""Many trainings: proposed, stopped early, written down, confirmed, judged.

Only `first_rung`, `trial`, `together`, `agenda`, `explorations`, `schedulers`, `progress` and `tuning` know Ray.

Files in floor order: `search_space`, `samplers`, `schedulers`, `pareto`, `ledger`, `searcher`, `depths`, `assignment`, `saved`, `reading`,
`found_heads`, `heads_alone`, `ladder`, `build`, `first_rung`, `together`, `work`, `trial`, `agenda`, `contest`, `importance`, `plan`,
`prepared`, `progress`, `record`, `winner`, `explorations`, `tuning`, `terminal`, `review`.
"""
