"""Many trainings: proposed, stopped early, written down, confirmed, judged.

Rooms in floor order: `proposing`, `trials`, `deciding`; then the files here. Of these only `agenda`, `progress` and `tuning` know Ray.

Files in floor order: `agenda`, `plan`, `prepared`, `progress`, `record`, `winner`, `explorations`, `tuning`, `terminal`, `review`.
"""
