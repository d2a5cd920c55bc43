"""Methods side by side: a matrix of runs at equal tokens and parameters, a table and a page."""
