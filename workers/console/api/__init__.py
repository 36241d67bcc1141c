"""The console's JSON API ``/api/v1``: one table of operations that routes, validates and documents itself."""
