"""Small SVG drawings for the report of a search, made of text, without a plotting library and without scripts.

Each file draws one thing from plain numbers and knows nothing of searches' folders, Ray or torch. Colours are classes of
the page's style sheet, so a drawing follows light, dark and print. Wide drawings take their width and are drawn twice,
for a wide and for a narrow page; small multiples are as wide as a telephone shows them.

Files in floor order: `numerals`, `svg`, `scales`, `axes`, `forest`, `confusion`, `reliability`, `risk_coverage`,
`curves`, `history`, `parallel`, `bars`, `dots`, `front`.
"""
