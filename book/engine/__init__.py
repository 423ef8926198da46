"""From MyST chapters to an executed, strictly built, offline site.

    python -m book.engine --profile smoke|laptop|full [--chapter NAME]

`chapter` reads and checks sources, `execution` runs one notebook, `cache` keeps
runs whose inputs did not change, `runs` schedules them, `site` renders, and
`scoreboard` turns the ledger into a page.
"""
