"""Load: requests on a schedule or as fast as answers come, and what became of each. It knows the HTTP surface and nothing behind it.

Files in floor order: `arrivals`, `texts`, `replicas`, `outcomes`, `sending`, `capacity`, `report`, `csv_file`, `plot`, `progress`,
`command`.
"""
