"""What waits, and what is computed next: no text, model or HTTP is known here.

Files in floor order: `batch`, `turns`, `counted`, `pace`, `queued`, `composing`, `engine_thread`, `scheduler`.
"""
