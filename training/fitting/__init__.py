"""Trains one model.

It does not know the search or Ray.

Files in floor order: `loss`, `optimiser`, `device`, `workers`, `predict`, `golden_answers`, `step`, `memory`, `piece_counts`,
`word_weights`, `population`, `fit`.
"""
