"""The whole report of ``make bench``: sections, tables, plots; README's figures, which come from it."""
