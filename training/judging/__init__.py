"""What answers are worth: metrics, calibration, abstention, intervals, baselines.

It knows logits and labels, not who made them, and imports neither torch nor Ray.

Files in floor order: `metrics`, `shares`, `calibration`, `abstention`, `bootstrap`, `word_counts`, `judge`, `comparison`.
"""
