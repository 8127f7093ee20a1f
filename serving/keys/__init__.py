"""Who may ask: keys with scopes, kept in the storage as digests, and the guard before the routes.

Files in floor order: `scopes`, `key`, `store`, `ring`, `guard`, `command`. It knows neither texts nor versions.
"""
