"""The page at ``/``: a chat in the browser, of files that this server alone has."""
